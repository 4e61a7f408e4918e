"""What is in one checkpoint: where the run stood, its settings, and every parameter with its norms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megavideo.checkpoint.manifest import settings_of
from megavideo.checkpoint.read import CheckpointReader
from megavideo.parallel.layers.sharding import WHOLE


@dataclass(frozen=True)
class ParameterRow:
    """A parameter, its whole shape, and the L2 norm of each of its states."""

    name: str
    shape: tuple[int, ...]
    norms: dict[str, float]


@dataclass(frozen=True)
class Contents:
    """A checkpoint. `norms` are those of each state over all parameters; `config` is the run's."""

    place: str
    step: int
    optimizer_steps: int
    layout: str
    progress: dict[str, Any]
    validation_loss: float | None
    stage_end: bool
    num_files: int
    size_bytes: int
    num_parameters: int
    norms: dict[str, float]
    parameters: tuple[ParameterRow, ...]
    config: dict[str, Any]


def contents_of(folder: Path) -> Contents:
    """Read a checkpoint, one state of one parameter at a time. Raises CheckpointError where it is damaged."""
    reader = CheckpointReader(folder)
    manifest = reader.manifest
    states = sorted(manifest.states)
    rows = []
    for name, shape in manifest.shapes.items():
        numel = math.prod(shape)
        norms = {state: float(reader.read(state, name, WHOLE, 0, numel).double().norm()) for state in states}
        rows.append(ParameterRow(name, shape, norms))
    return Contents(
        place=str(folder),
        step=manifest.step,
        optimizer_steps=manifest.optimizer_steps,
        layout=manifest.layout,
        progress=manifest.progress,
        validation_loss=manifest.validation_loss,
        stage_end=manifest.stage_end,
        num_files=len(manifest.files),
        size_bytes=manifest.size_bytes,
        num_parameters=sum(math.prod(row.shape) for row in rows),
        norms={state: math.sqrt(sum(row.norms[state] ** 2 for row in rows)) for state in states},
        parameters=tuple(rows),
        config=settings_of(manifest.config, str(folder)),
    )
