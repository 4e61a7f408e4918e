"""Small states whose values tell their step, as one of several ranks holds them."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from megavideo.checkpoint.manifest import Header
from megavideo.checkpoint.read import CheckpointReader
from megavideo.parallel.engines.fragments import Fragment
from megavideo.parallel.layers.sharding import WHOLE

SHAPES = {"a.weight": (6, 40), "b.bias": (7,), "c.weight": (400, 500)}
STATES = ("weight", "exp_avg", "ema")


def whole(state: str, name: str, step: int) -> torch.Tensor:
    """A state of a parameter after a step."""
    generator = torch.Generator().manual_seed(1000 * step + 10 * STATES.index(state) + list(SHAPES).index(name))
    return torch.randn(SHAPES[name], generator=generator)


def fragments(step: int, rank: int = 0, world_size: int = 1) -> list[Fragment]:
    """What a rank of several owns: an equal range of every parameter."""
    made = []
    for name, shape in SHAPES.items():
        numel = math.prod(shape)
        begin, end = numel * rank // world_size, numel * (rank + 1) // world_size
        states = {state: whole(state, name, step).flatten()[begin:end].clone() for state in STATES}
        made.append(Fragment(name, shape, WHOLE, begin, states, torch.tensor(float(step))))
    return made


def header(step: int, **more: object) -> Header:
    """Of a checkpoint of these."""
    return Header(step, "dp2-zero1", "name: x\n", **more)  # type: ignore[arg-type]


def check(folder: Path) -> int:
    """Read a checkpoint of these and compare every value; its step. Raises CheckpointError where it is damaged."""
    reader = CheckpointReader(folder)
    reader.verify()
    step = reader.manifest.step
    for state in STATES:
        for name, values in reader.whole(state).items():
            assert torch.equal(values, whole(state, name, step)), (folder, state, name)
    assert reader.manifest.shapes == SHAPES
    return step
