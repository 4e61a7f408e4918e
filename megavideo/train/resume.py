"""Going on from where a run folder stands: what must not have changed, and where its newest checkpoint is."""

from __future__ import annotations

import logging
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from megavideo.checkpoint.agreement import from_rank_0
from megavideo.checkpoint.candidates import newest_manifest
from megavideo.checkpoint.place import Storage
from megavideo.config.dump import read_config
from megavideo.config.schema.train import TrainRun
from megavideo.config.word import as_word
from megavideo.data.table.selection import num_held_out
from megavideo.errors import ConfigError
from megavideo.train.position import Position, read_position

# a change of these would make the run another one
_OF_RUN = ("model", "train.seed", "lora.rank", "lora.alpha", "lora.targets")
# and of these its stage; everything else may change between two starts
_OF_STAGE = (
    "diffusion",
    "data.tokens_per_pack",
    "data.max_segments",
    "data.text_tokens_per_pack",
    "data.sources",
    "data.area",
    "data.frames",
    "train.packs_per_step",
)


def check_same_run(config: TrainRun, config_file: Path) -> None:
    """Raise ConfigError where a run folder holds a run of other model, data or objective.

    Another stage of a curriculum has data and an objective of its own.
    """
    before = read_config(TrainRun, config_file)
    same_stage = before.stage == config.stage
    for path in (*_OF_RUN, *(_OF_STAGE if same_stage else ())):
        for name, old, new in _differences(path, _get(before, path), _get(config, path)):
            raise ConfigError(
                name,
                new,
                f"the run in {config_file.parent} was started with {old!r}",
                f"write {as_word(name, old)} to go on with it, or name= another run",
            )
    if same_stage and num_held_out(before) != num_held_out(config):
        raise ConfigError(
            "validation.clips",
            num_held_out(config),
            f"the run in {config_file.parent} holds out {num_held_out(before)} clips, and trained on all others",
            "keep validation as it was, or give validation.uri= another dataset; or name= another run",
        )
    if (before.optim.ema_decay is None) != (config.optim.ema_decay is None):
        raise ConfigError(
            "optim.ema_decay",
            config.optim.ema_decay,
            f"the run in {config_file.parent} was started with {before.optim.ema_decay!r}",
            "keep the average on, or off, for the whole run; or name= another run",
        )
    if before.optim.algorithm != config.optim.algorithm:
        raise ConfigError(
            "optim.algorithm",
            config.optim.algorithm,
            f"the run in {config_file.parent} was started with {before.optim.algorithm}, which has other states",
            f"write optim.algorithm={before.optim.algorithm} to go on with it, or name= another run with init_from=",
        )
    if replace(before, stages={}) != config:
        logging.getLogger(__name__).info("settings differ from the last start; the old ones are kept beside the new")


def newest_position(checkpoints: Path, store: Storage | None) -> tuple[int, Position | None]:
    """Steps done and position as the newest checkpoint tells them, before its files are read; a collective call.

    (0, None) where there is none. Raises CheckpointError, or StoreUnreachable, on every rank where rank 0 cannot tell.
    """

    def find() -> tuple[int, dict[str, Any]] | None:
        manifest = newest_manifest(checkpoints, store)
        return None if manifest is None else (manifest.step, manifest.progress)

    found = from_rank_0(find)
    return (0, None) if found is None else (found[0], read_position(found[1], checkpoints))


def _get(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def _differences(path: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if is_dataclass(old):
        return [
            row for f in fields(old) for row in _differences(f"{path}.{f.name}", _get(old, f.name), _get(new, f.name))
        ]
    return [] if old == new else [(path, old, new)]
