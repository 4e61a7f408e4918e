"""`megavideo train`: one run, from its folder's newest checkpoint or from the start, to its last step."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch.distributed as dist

from megavideo.config.dump import to_yaml
from megavideo.config.schema.train import TrainRun
from megavideo.data.dataset import ENCODERS_PREFIX, LatentDataset, info_bytes, parse_info
from megavideo.data.storage import download_all, write_file
from megavideo.errors import ConfigError
from megavideo.generate.loaded_run import SAMPLING_FILE
from megavideo.observe.metrics import MetricsSink, MetricsWriter
from megavideo.observe.progress import TrainingProgress
from megavideo.observe.run_folder import RunFolder, create_run_folder
from megavideo.optim.schedule import learning_rate
from megavideo.parallel.distributed import Launch, process_group
from megavideo.train.build import build_parts
from megavideo.train.loop import FAULTS_FILE, Loop
from megavideo.train.peak import peak_flops_per_second
from megavideo.train.resume import check_same_run, load_newest
from megavideo.train.step import Trainer

_DATASET_COPY = "dataset.json"


@dataclass(frozen=True)
class TrainReport:
    """What a run came to. Losses are means over the first and last tenth of the steps that ran in this start."""

    run: str
    rank: int
    steps: int
    resumed_at: int
    first_loss: float
    last_loss: float
    skipped: int
    parameters: int


def train(config: TrainRun) -> TrainReport:
    """Train, alone or as one of the processes that torchrun or srun started. Ends with a saved checkpoint.

    Raises MegavideoError of the kind that fits: settings, data, checkpoint, topology or numerics.
    """
    with process_group() as launch:
        return _train(config, launch)


def _train(config: TrainRun, launch: Launch) -> TrainReport:
    place = RunFolder(Path(config.output) / config.name)
    _check_output(config, place)
    if place.config.exists():
        check_same_run(config, place.config)
    parts = build_parts(config, launch, _version_of(config, place))
    _check_same_dataset(place, parts.dataset)
    dist.barrier()  # every rank has read the old settings before the first one replaces them
    if launch.rank == 0:
        create_run_folder(place.root, to_yaml(config), sys.argv)
        write_file(place.root / _DATASET_COPY, info_bytes(parts.dataset.info))
        write_file(place.root / SAMPLING_FILE, _sampling_facts(parts.dataset))
        download_all(parts.dataset.storage, ENCODERS_PREFIX, place.encoders)
    dist.barrier()
    begin = load_newest(place.checkpoints, parts.engine)
    peak = peak_flops_per_second(launch.device, parts.engine.dtype, config.observe.peak_tflops)
    progress = TrainingProgress(
        config.train.steps,
        config.train.log_every,
        begin,
        None if peak is None else peak * launch.world_size,
    )
    num_parameters = parts.engine.num_parameters()
    _announce(config, parts.dataset, num_parameters, launch)
    trainer = Trainer(
        parts.engine, parts.mesh, launch.device, partial(learning_rate, config.optim, num_steps=config.train.steps)
    )
    if launch.rank == 0 and (faults := place.root / FAULTS_FILE).exists():
        MetricsWriter(faults, begin).close()  # steps after the checkpoint are made again, and so are their faults
    metrics = MetricsWriter(place.metrics, begin, _sinks(config, place, begin)) if launch.rank == 0 else None
    try:
        result = Loop(config, parts, trainer, place, metrics).run(begin, progress)
    finally:
        if metrics is not None:
            metrics.close()
    return TrainReport(
        str(place.root), launch.rank, config.train.steps, begin,
        result.first_loss, result.last_loss, result.skipped, num_parameters,
    )  # fmt: skip


def _check_output(config: TrainRun, place: RunFolder) -> None:
    for path in (Path(config.output), place.root):
        if path.exists() and not path.is_dir():
            raise ConfigError("output", config.output, f"{path} is a file, and a folder is needed", "name a folder")


def _sinks(config: TrainRun, place: RunFolder, begin: int) -> list[MetricsSink]:
    from megavideo.observe.tensorboard import TensorBoardSink
    from megavideo.observe.wandb import WandbSink

    sinks: list[MetricsSink] = []
    if config.observe.tensorboard:
        sinks.append(TensorBoardSink(place.tensorboard, begin))
    if config.observe.wandb:
        sinks.append(WandbSink(config.observe.wandb_project or "megavideo", config.name, place.root, asdict(config)))
    return sinks


def _version_of(config: TrainRun, place: RunFolder) -> int | None:
    """The version of the dataset that is asked for, else the one that the run was started on, else the newest."""
    copy = place.root / _DATASET_COPY
    if config.data.version is not None or not copy.exists():
        return config.data.version
    return parse_info(str(place.root), copy.read_bytes()).version or None


def _check_same_dataset(place: RunFolder, dataset: LatentDataset) -> None:
    copy = place.root / _DATASET_COPY
    if copy.exists() and copy.read_bytes() != info_bytes(dataset.info):
        raise ConfigError(
            "data.uri",
            dataset.uri,
            f"the run in {place.root} was started on another dataset",
            "give the dataset that it was started on, or name= another run",
        )


def _sampling_facts(dataset: LatentDataset) -> bytes:
    """What sampling needs of the dataset besides its encoders: the most common frame rate."""
    rates = Counter(sample.fps for sample in dataset.samples if sample.latent.t > 1) or Counter([1.0])
    return json.dumps({"fps": rates.most_common(1)[0][0]}).encode()


def _announce(config: TrainRun, dataset: LatentDataset, num_parameters: int, launch: Launch) -> None:
    logging.getLogger(__name__).info(
        "%s: %.2f M parameters, %d samples, %d packs of %d tokens a step, layout %s on %d processes",
        config.name, num_parameters / 1e6, dataset.info.num_samples, config.train.packs_per_step,
        config.data.tokens_per_pack, config.layout, launch.world_size,
    )  # fmt: skip
