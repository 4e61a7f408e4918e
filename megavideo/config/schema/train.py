"""Settings of the training loop (groups `train`, `observe`) and the whole of `megavideo train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.config.schema.data import DataConfig
from megavideo.config.schema.diffusion import DiffusionConfig
from megavideo.config.schema.exit import ExitConfig
from megavideo.config.schema.field import setting
from megavideo.config.schema.guard import GuardConfig
from megavideo.config.schema.lora import LoraConfig
from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.optim import OptimConfig
from megavideo.config.schema.precision import LayersConfig
from megavideo.config.schema.validation import ValidationConfig

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

    def chooses(self, number: int, layers: int) -> bool:
        """Whether block `number` of `layers` is computed again: each stage gets its share, and the first is chosen."""
        count = layers if self.layers is None else self.layers
        return self.kind != "none" and number * count % layers < count


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length, batch and precision of a run. A step is `packs_per_step` packs over all data-parallel ranks.

    That ranks of one tp, cp and pp group have the same inputs is checked at the first step of a start and at every
    `check_inputs_every`th.
    """

    steps: int = setting(minimum=1)
    packs_per_step: int = setting(minimum=1)
    seed: int = setting(0, minimum=0)
    precision: Literal["fp32", "bf16"] = "bf16"
    recompute: RecomputeConfig = RecomputeConfig()
    log_every: int = setting(10, minimum=1)
    check_inputs_every: int = setting(100, minimum=1)


@dataclass(frozen=True, kw_only=True)
class ObserveConfig:
    """Where numbers go besides metrics.jsonl. `peak_tflops` None: known by the device's name, or measured on a CPU."""

    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str | None = None
    peak_tflops: float | None = setting(None, above=0.0)


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """All settings of `megavideo train`. `layout` is written as in `dp2-zero1`; `output` holds the run folders.

    `stages` are those of a curriculum (group `curriculum`), by name and in order, each with all of its settings;
    `stage` names or numbers the one to train, and null goes on from wherever the run folder stands. `init_from` is a
    run folder or checkpoint whose weights and averages a new run begins with, or weights of Wan as `megavideo import`
    takes them; the optimizer's state is new. `init_expert` says which of two transformers is meant there.
    """

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
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    exit: ExitConfig = field(default_factory=ExitConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    init_from: str | None = setting(None, remedy="VALUE is a folder of Wan, a run folder or a checkpoint")
    init_expert: Literal["high", "low"] | None = None
    stage: str | None = None
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
