"""What a rank does and tells in `test_muon_layouts.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from deepspeed.runtime.zero.muon import original_muon

from megavideo.checkpoint.manifest import Header
from megavideo.checkpoint.restore import restore
from megavideo.checkpoint.saver import Checkpointer, SaveGroup
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.errors import MegavideoError
from megavideo.optim import matrix_exchange
from megavideo.optim.schedule import learning_rate
from megavideo.parallel.engines.engine import Engine
from megavideo.parallel.engines.fragments import owned_fragments
from megavideo.parallel.processes.distributed import Launch
from megavideo.parallel.processes.groups import destroy_groups
from megavideo.parity.packs import step_input
from megavideo.parity.process import build_parity_engine
from megavideo.parity.spec import ParitySpec
from megavideo.train.step import Trainer

SPEC = ParitySpec(optimizer="muon", num_layers=2, packs_per_step=2, steps=4)


def counted(launch: Launch, layouts: list[str]) -> list[dict[str, Any]]:
    """Shapes of the matrices that this rank orthogonalises in one step, and calls of DeepSpeed's own, by layout."""
    found = []
    for layout in layouts:
        with _engine(launch, SPEC, layout) as engine, _counting() as (shapes, others):
            _train(launch, engine, SPEC, 0, 1)
            found.append({"shapes": shapes, "others": others})
    return found


def saved(launch: Launch, layout: str, folder: str) -> list[float]:
    """Train two steps, save, and train one more; its loss."""
    with _engine(launch, SPEC, layout) as engine:
        _train(launch, engine, SPEC, 0, 2)
        _save(engine, layout, folder)
        return _train(launch, engine, SPEC, 2, 1)


def gone_on(launch: Launch, cases: list[tuple[str, str, str]], folder: str, copies: str) -> list[Any]:
    """Restore under each layout with its optimizer and precision, save a copy, and train one step; loss or message."""
    found: list[Any] = []
    for optimizer, precision, layout in cases:
        spec = ParitySpec(optimizer=optimizer, precision=precision, num_layers=2, packs_per_step=2, steps=4)  # type: ignore[arg-type]
        with _engine(launch, spec, layout) as engine:
            try:
                restore(Path(folder), engine)
            except MegavideoError as error:
                found.append(str(error))
                continue
            _save(engine, layout, f"{copies}/{layout}-{precision}")
            found.append(_train(launch, engine, spec, 2, 1))
    return found


@contextmanager
def _engine(launch: Launch, spec: ParitySpec, layout: str) -> Iterator[Engine]:
    with patch("deepspeed.utils.groups.mpu", None):
        engine = build_parity_engine(spec, layout, launch)
    engine.create_state()
    yield engine
    engine.close()
    destroy_groups()


@contextmanager
def _counting() -> Iterator[tuple[list[list[int]], list[int]]]:
    shapes: list[list[int]] = []
    others: list[int] = []
    original = matrix_exchange.matrix_update

    def counting(matrix: torch.Tensor) -> torch.Tensor:
        shapes.append(list(matrix.shape))
        return original(matrix)

    with (
        patch.object(matrix_exchange, "matrix_update", counting),
        patch.object(original_muon, "muon_update", lambda *given, **options: others.append(1)),
    ):
        yield shapes, others


def _train(launch: Launch, engine: Engine, spec: ParitySpec, first: int, count: int) -> list[float]:
    mesh = engine.plan.mesh
    trainer = Trainer(engine, mesh, launch.device, partial(learning_rate, spec.optim, num_steps=spec.steps))
    inputs = (step_input(spec, step, mesh.dp_rank, mesh.dp) for step in range(first, first + count))
    return [trainer.step(given)[0].loss for given in inputs]


def _save(engine: Engine, layout: str, folder: str) -> None:
    with Checkpointer(CheckpointConfig(), Path(folder), SaveGroup.of_run()) as checkpointer:
        checkpointer.save(Header(2, layout, "name: x\n", {"stage": "low", "at": 2}, 0.0), owned_fragments(engine))
        checkpointer.wait(required=True)
