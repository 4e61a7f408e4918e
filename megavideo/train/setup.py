"""What a start does before its first step: the run folder, what must not have changed, and what is measured besides."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch.distributed as dist

from megavideo.border.files import read_file
from megavideo.border.refused import Refused
from megavideo.checkpoint.agreement import from_rank_0
from megavideo.config.curriculum import Stage
from megavideo.config.dump import to_yaml
from megavideo.config.schema.train import TrainRun
from megavideo.data.dataset.dataset import ENCODERS_PREFIX, info_bytes, parse_info
from megavideo.data.storage.open import download_all, open_storage
from megavideo.data.storage.protocol import Storage
from megavideo.data.storage.retry import RetryPolicy
from megavideo.data.table.sample_table import video_rates
from megavideo.encoders.folder import DESCRIPTION_NAME, same_encoders
from megavideo.errors import CheckpointError, ConfigError, DataError
from megavideo.generate.loaded_run import SAMPLING_FILE
from megavideo.observe.run_folder import RunFolder, create_run_folder
from megavideo.observe.whole_file import write_file
from megavideo.parallel.processes.distributed import Launch
from megavideo.train.build import Parts
from megavideo.train.resume import check_same_run
from megavideo.train.validation.held_out_clips import open_held_out
from megavideo.train.validation.preview import Previewer
from megavideo.train.validation.validation import Validator

# a store that is gone for minutes shall cost a checkpoint's copy, not the run
_CHECKPOINT_STORE_SECONDS = 300.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunPlace:
    """The folder of a run, on every rank."""

    folder: RunFolder

    @classmethod
    def of(cls, config: TrainRun) -> RunPlace:
        """Raises ConfigError where it, or the folder of all runs, is a file."""
        place = RunFolder(Path(config.output) / config.name)
        for path in (Path(config.output), place.root):
            if path.exists() and not path.is_dir():
                raise ConfigError("output", config.output, f"{path} is a file, and a folder is needed", "name a folder")
        return cls(place)

    def check(self, stage: Stage) -> None:
        """Raise ConfigError where the folder holds a run of other settings."""
        if self.folder.config.exists():
            check_same_run(stage.config, self.folder.config)

    def version(self, config: TrainRun) -> int | None:
        """The version of the dataset that is asked for, else the one that the stage began with, else the newest."""
        copy = self._dataset_copy(config)
        if config.data.version is not None or not copy.exists():
            return config.data.version
        return parse_info(str(self.folder.root), _content(copy)).version or None

    def prepare(self, stage: Stage, stages: Sequence[Stage], parts: Parts) -> None:
        """Make or go on with the folder; a collective call. Of the other `stages` it is told how long they are.

        Raises ConfigError where the stage was begun on another dataset, or the run with another autoencoder, and
        CheckpointError, on every rank, where it cannot be written.
        """
        dataset, copy = parts.dataset, self._dataset_copy(stage.config)
        if copy.exists() and _content(copy) != info_bytes(dataset.info):
            raise ConfigError(
                "data.uri",
                dataset.uri,
                f"the run in {self.folder.root} was started on another dataset",
                "give the dataset that it was started on, or name= another run",
            )
        if not same_encoders(dataset.storage, ENCODERS_PREFIX, self.folder.encoders):
            raise ConfigError(
                "data.uri",
                dataset.uri,
                f"was encoded by another autoencoder or text encoder than the run in {self.folder.root} began with",
                "encode it with the same ones, or name= another run",
            )
        dist.barrier()  # every rank has read the old settings before the first one replaces them
        from_rank_0(lambda: self._write(stage, stages, parts))

    def _write(self, stage: Stage, stages: Sequence[Stage], parts: Parts) -> None:
        """Settings, facts of the dataset, and what sampling needs of it: its encoders and most common frame rate."""
        dataset = parts.dataset
        lengths = {other.name: {"train": {"steps": other.config.train.steps}} for other in stages if other.name}
        try:
            create_run_folder(self.folder.root, to_yaml(replace(stage.config, stages=lengths)), sys.argv)
            write_file(self._dataset_copy(stage.config), info_bytes(dataset.info))
            download_all(dataset.storage, ENCODERS_PREFIX, self.folder.encoders)
            if not (self.folder.encoders / DESCRIPTION_NAME).exists():
                _log.warning(
                    "%s has no %s%s: the run can be trained, and not sampled. Remedy: restore the folder from a copy",
                    dataset.uri, ENCODERS_PREFIX, DESCRIPTION_NAME,
                )  # fmt: skip
            rates = video_rates(parts.feed.selected.table)
            told = {"fps": rates.common, "lowest": rates.lowest, "highest": rates.highest} if rates else {"fps": 1.0}
            write_file(self.folder.root / SAMPLING_FILE, json.dumps(told).encode())
        except OSError as error:
            raise CheckpointError(
                f"{self.folder.root}: the run folder cannot be written ({error}). Remedy: make room or correct the "
                "rights, or give another folder as output="
            ) from error

    def _dataset_copy(self, config: TrainRun) -> Path:
        return self.folder.root / (f"dataset_{config.stage}.json" if config.stage else "dataset.json")


def checkpoint_store(config: TrainRun) -> Storage | None:
    """The store that checkpoints are copied or written to, None where they stay in the run folder."""
    uri = config.checkpoint.uri
    return None if uri is None else open_storage(f"{uri}/{config.name}", RetryPolicy(_CHECKPOINT_STORE_SECONDS))


def build_validator(config: TrainRun, parts: Parts, launch: Launch) -> Validator | None:
    """What measures the loss on clips that are not trained on; None where `validation.every` is."""
    if config.validation.every is None:
        return None
    held_out = open_held_out(config, parts.dataset, parts.feed.selected)
    return Validator(config, parts.engine, held_out, launch.device)


def build_previewer(config: TrainRun, parts: Parts, folder: RunFolder, launch: Launch) -> Previewer | None:
    """What draws samples of prompts; None where `validation.samples_every` is. A collective call."""
    if config.validation.samples_every is None:
        return None
    info = parts.dataset.info
    return Previewer(config, parts.engine, (info.time_ratio, info.space_ratio), folder, launch.device)


def _content(path: Path) -> bytes:
    try:
        return read_file(path)
    except (OSError, Refused) as error:
        raise DataError(f"{path}: cannot be read ({error}). Remedy: give name= another run") from error
