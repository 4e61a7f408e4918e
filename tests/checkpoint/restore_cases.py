"""What a rank does and tells in `test_restore.py`: a small engine that is saved, disturbed and restored."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

from megavideo.checkpoint.candidates import newest_manifest
from megavideo.checkpoint.manifest import Header
from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.checkpoint.restore import restore, restore_weights
from megavideo.checkpoint.saver import Checkpointer, SaveGroup
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.data.storage.open import open_storage
from megavideo.errors import MegavideoError
from megavideo.optim.schedule import learning_rate
from megavideo.parallel.engines.engine import Engine
from megavideo.parallel.engines.fragments import held_fragments, owned_fragments
from megavideo.parallel.processes.distributed import Launch
from megavideo.parallel.processes.groups import destroy_groups
from megavideo.parity.packs import step_input
from megavideo.parity.process import build_parity_engine
from megavideo.parity.spec import ParitySpec
from megavideo.train.step import Trainer

SPEC = ParitySpec(packs_per_step=2, steps=6, num_layers=2)
SAVED = (1, 2, 3)


@dataclass(frozen=True)
class Call:
    """One of the functions below, by name, and its arguments after the launch and the list of engines that it makes."""

    function: str
    arguments: tuple[Any, ...]


def in_turn(launch: Launch, calls: Sequence[Call]) -> list[Any]:
    """What each call returns."""
    results = []
    for call in calls:
        engines: list[Engine] = []
        results.append(globals()[call.function](launch, engines, *call.arguments))
        for engine in engines:
            engine.close()
        destroy_groups()
    return results


def engine_of(launch: Launch, engines: list[Engine], layout: str) -> Engine:
    """A fresh engine with its states, also put into `engines`."""
    with patch("deepspeed.utils.groups.mpu", None):
        engines.append(build_parity_engine(SPEC, layout, launch))
    engines[-1].create_state()
    return engines[-1]


def train(launch: Launch, engine: Engine, first: int, count: int) -> list[float]:
    """Steps from `first` on; their losses."""
    mesh = engine.plan.mesh
    trainer = Trainer(engine, mesh, launch.device, partial(learning_rate, SPEC.optim, num_steps=SPEC.steps))
    inputs = (step_input(SPEC, step, mesh.dp_rank, mesh.dp) for step in range(first, first + count))
    return [trainer.step(given)[0].loss for given in inputs]


def digest(engine: Engine) -> str:
    """Of all states on this rank."""
    found = hashlib.sha256()
    for fragment in held_fragments(engine):
        for state, values in fragment.states.items():
            found.update(f"{state}{fragment.name}{fragment.start}".encode())
            found.update(values.contiguous().numpy().tobytes())
    return found.hexdigest()


def save_three(
    launch: Launch, engines: list[Engine], layout: str, folder: str, uri: str | None = None, straight: bool = False
) -> Any:
    """Train and save steps 1 to 3 in the background; losses after them, states at each, and what was polled."""
    config = CheckpointConfig(keep_last=5, through_folder=not straight)
    storage = None if uri is None else open_storage(uri)
    engine, digests, losses = engine_of(launch, engines, layout), [], []
    with Checkpointer(config, Path(folder), SaveGroup.of_run(), storage) as checkpointer:
        checkpointer.reserve(owned_fragments(engine))
        for step in SAVED:
            losses += train(launch, engine, step - 1, 1)
            digests.append(digest(engine))
            header = Header(step, layout, "name: x\n", {"stage": "low", "at": step}, losses[-1], step == 3)
            checkpointer.save(header, owned_fragments(engine))
        losses += train(launch, engine, 3, 2)  # while the last one is being written
        checkpointer.wait(required=True)
        events = [[event.step, event.failure, event.copy_failure] for event in checkpointer.poll()]
    return {"digests": digests, "losses": losses, "events": events, "rank": launch.rank}


def go_on(
    launch: Launch,
    engines: list[Engine],
    layout: str,
    folder: str,
    uri: str | None = None,
    options: dict[str, Any] | None = None,
) -> Any:
    """Restore into a fresh engine and train two steps more; or the error that was raised."""
    told = _Told()
    storage = None if uri is None else open_storage(uri)
    engine = engine_of(launch, engines, layout)
    train(launch, engine, 4, 1)  # nothing of what an engine did before may be left, as a run that goes back needs it
    begin = newest_manifest(Path(folder), storage) if launch.rank == 0 else None
    dist.barrier()
    try:
        manifest = restore(Path(folder), engine, storage, **(options or {}))
    except MegavideoError as error:
        return {"error": type(error).__name__, "message": str(error), "told": told.lines}
    if manifest is None:
        return {"step": None}
    return {
        "step": manifest.step, "progress": manifest.progress, "digest": digest(engine), "told": told.lines,
        "losses": train(launch, engine, manifest.step, 5 - manifest.step),
        "newest": None if begin is None else begin.step,
    }  # fmt: skip


def begin_from(launch: Launch, engines: list[Engine], layout: str, folder: str) -> Any:
    """Weights and averages alone into a fresh engine that was trained elsewhere; sizes of each state, and counts."""
    engine = engine_of(launch, engines, layout)
    train(launch, engine, 4, 1)
    try:
        restore_weights(lambda: CheckpointReader(find_checkpoint(Path(folder))), engine)
    except MegavideoError as error:
        return {"error": type(error).__name__, "message": str(error)}
    sums: dict[str, float] = {}
    for fragment in owned_fragments(engine):
        for state, values in fragment.states.items():
            sums[state] = sums.get(state, 0.0) + float(values.double().abs().sum())
    steps = [float(fragment.steps) for fragment in held_fragments(engine)]
    return {"sums": sums, "steps": steps, "loss": train(launch, engine, 3, 1)}


class _Told(logging.Handler):
    """Warnings of this rank."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        logger = logging.getLogger("megavideo")
        for earlier in [handler for handler in logger.handlers if isinstance(handler, _Told)]:
            logger.removeHandler(earlier)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
