"""Going on from where a run folder stands: what must not have changed, and the newest checkpoint into the engine."""

from __future__ import annotations

import logging
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megavideo.checkpoint.manifest import list_checkpoints
from megavideo.checkpoint.read import CheckpointReader
from megavideo.config.dump import from_yaml
from megavideo.config.schema.train import TrainRun
from megavideo.errors import CheckpointError, ConfigError
from megavideo.parallel.engine import Engine
from megavideo.parallel.fragments import held_fragments

# a change of these would make the run another one; everything else may change between two starts
_FIXED = (
    "model",
    "diffusion",
    "data.tokens_per_pack",
    "data.max_segments",
    "data.text_tokens_per_pack",
    "data.sources",
    "train.seed",
    "train.packs_per_step",
)


def check_same_run(config: TrainRun, config_file: Path) -> None:
    """Raise ConfigError where a run folder holds a run of other model, data or objective."""
    before = from_yaml(TrainRun, config_file.read_text(), source=str(config_file))
    for path in _FIXED:
        for name, old, new in _differences(path, _get(before, path), _get(config, path)):
            raise ConfigError(
                name,
                new,
                f"the run in {config_file.parent} was started with {old!r}",
                f"set {name}={old} to go on with it, or name= another run",
            )
    if (before.optim.ema_decay is None) != (config.optim.ema_decay is None):
        raise ConfigError(
            "optim.ema_decay",
            config.optim.ema_decay,
            f"the run in {config_file.parent} was started with {before.optim.ema_decay!r}",
            "keep the average on, or off, for the whole run; or name= another run",
        )
    if before != config:
        logging.getLogger(__name__).info("settings differ from the last start; the old ones are kept beside the new")


def load_newest(checkpoints: Path, engine: Engine) -> int:
    """Fill the engine from the newest checkpoint; the number of steps done, 0 where there is none; a collective call.

    Raises CheckpointError on every rank where any of them met a file that cannot be used.
    """
    found = list_checkpoints(checkpoints)
    if not found:
        return 0
    step, failure = 0, None
    try:
        step = _fill(engine, found[-1])
    except CheckpointError as error:
        failure = error
    # ranks read files of their own, and one that fails would leave the others waiting for it
    failures: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, None if failure is None else str(failure))
    if failure is not None:
        raise failure
    if any(failures):
        raise CheckpointError("; ".join(f"rank {rank} failed: {text}" for rank, text in enumerate(failures) if text))
    logging.getLogger(__name__).info("going on from %s", found[-1])
    return step


def _fill(engine: Engine, checkpoint: Path) -> int:
    reader = CheckpointReader(checkpoint)
    if engine.zero < 3:
        reader.fill_parameters(engine.local_parameters())
    for fragment in held_fragments(engine):
        reader.fill(fragment)
    engine.publish_weights()
    return reader.manifest.step


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
