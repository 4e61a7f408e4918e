"""All settings of `megavideo parity`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megavideo.config.schema.field import setting
from megavideo.config.schema.model import Modulation
from megavideo.config.schema.train import RecomputeConfig

Matrix = Literal["none", "fast", "full"]


@dataclass(frozen=True, kw_only=True)
class ParityRun:
    """A small model, trained for `steps` steps on `packs_per_step` packs of `tokens` tokens under each layout.

    `pack` is a mixture: `mixed` (an image, a clip longer than half the pack, a short clip, an empty tail), `images`,
    `one`, `halves`, or token grids as `1x4x4+5x4x3`. `matrix` adds the project's own list of layouts. `precision` fp8
    takes no layout: it compares one process's FP8 with its bf16 on the first batch. With `device_like` gpu, collectives
    complete late and out of step, and a read of a tensor's values in a forward or backward pass is an error. With
    `kernel` stand-in the layouts run an attention kernel that checks what it is given, and leaves NaN wherever one of a
    GPU leaves memory as it was.

    With `lora`, a rank, adapters beside every linear layer are trained, and all else must stay as it was, to the bit.
    """

    steps: int = setting(5, minimum=1)
    heads: int = setting(12, minimum=1)
    num_layers: int = setting(4, minimum=1)
    tokens: int = setting(96, minimum=1)
    precision: Literal["fp32", "bf16", "fp8"] = "fp32"
    pack: str = "mixed"
    modulation: Modulation = "adaln"
    optimizer: Literal["adamw", "muon"] = "adamw"
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)
    packs_per_step: int = setting(8, minimum=1)
    seed: int = setting(0, minimum=0)
    matrix: Matrix = "none"
    device_like: Literal["cpu", "gpu"] = "cpu"
    kernel: Literal["cpu", "stand-in"] = "cpu"
    lora: int | None = setting(None, minimum=1)
