"""Settings of the training loop (groups `train`, `observe`) and the whole of `megavideo train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megavideo.config.schema.data import DataConfig
from megavideo.config.schema.diffusion import DiffusionConfig
from megavideo.config.schema.field import setting
from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.optim import OptimConfig
from megavideo.config.schema.precision import LayersConfig

RECOMPUTE_PARTS = ("self_attention", "cross_attention", "ffn", "gelu")


@dataclass(frozen=True, kw_only=True)
class RecomputeConfig:
    """What the backward pass computes again in place of keeping it.

    `full` keeps the input of a block. `selective` keeps the inputs of the named `parts`: an attention or the `ffn` with
    the norm before it, or `gelu`, the activation between the two matrices of the feed-forward alone. `layers` is how
    many of the model's blocks do so, spread evenly (None: all). With `offload` those inputs wait in host memory.
    """

    kind: Literal["none", "selective", "full"] = "none"
    parts: tuple[str, ...] = ()
    layers: int | None = setting(None, minimum=1)
    offload: bool = False


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length, batch, precision and saving of a run. A step is `packs_per_step` packs over all data-parallel ranks.

    That ranks of one tp, cp and pp group have the same inputs is checked at the first step of a start and at every
    `check_inputs_every`th.
    """

    steps: int = setting(minimum=1)
    packs_per_step: int = setting(minimum=1)
    seed: int = setting(0, minimum=0)
    precision: Literal["fp32", "bf16"] = "bf16"
    recompute: RecomputeConfig = RecomputeConfig()
    checkpoint_every: int = setting(500, minimum=1)
    keep_checkpoints: int = setting(2, minimum=1)
    log_every: int = setting(10, minimum=1)
    check_inputs_every: int = setting(100, minimum=1)
    max_skipped: int = setting(20, minimum=1, remedy="the run ends after this many non-finite steps in a row")


@dataclass(frozen=True, kw_only=True)
class ObserveConfig:
    """Where numbers go besides metrics.jsonl. `peak_tflops` None: known by the device's name, or measured on a CPU."""

    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str | None = None
    peak_tflops: float | None = setting(None, above=0.0)


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """All settings of `megavideo train`. `layout` is written as in `dp2-zero1`; `output` holds the run folders."""

    name: str
    output: str
    layout: str
    model: ModelConfig
    data: DataConfig
    diffusion: DiffusionConfig
    optim: OptimConfig
    train: LoopConfig
    observe: ObserveConfig
    layers: LayersConfig = field(default_factory=LayersConfig)
