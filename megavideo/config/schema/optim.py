"""Settings of the optimizer (group `optim`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer, its schedule and its average. `ema_decay` None keeps no average.

    After `warmup_steps` the rate is `constant`, falls to `min_lr_ratio` of itself by a `cosine`, or (`wsd`: warm-up,
    stable, decay) stays until the last `decay_steps` of the run and falls to it in a straight line. So far as it is
    stable, a run is that of any length: a copy of its folder goes on with another train.steps.

    `algorithm` muon is Muon for the hidden matrices of the blocks and AdamW for all else, at one rate and decay. Then
    `muon_precision` is that of the matrix products by which an update is orthogonalised, and of what ranks exchange for
    it: bf16 as published, or fp32, in which layouts agree to rounding, at several times the cost on a GPU.
    """

    lr: float = setting(above=0.0, maximum=1.0, remedy="AdamW on a DiT usually takes 1e-5 to 2e-3")
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = setting(0.1, minimum=0.0)
    eps: float = setting(1e-8, above=0.0)
    warmup_steps: int = setting(0, minimum=0)
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    min_lr_ratio: float | None = setting(None, minimum=0.0, maximum=1.0)
    decay_steps: int | None = setting(None, minimum=1)
    clip: float | None = setting(1.0, above=0.0)
    ema_decay: float | None = setting(0.9999, minimum=0.0, maximum=1.0)
    algorithm: Literal["adamw", "muon"] = "adamw"
    muon_momentum: float | None = setting(None, minimum=0.0, maximum=0.9999)
    muon_precision: Literal["bf16", "fp32"] | None = None
