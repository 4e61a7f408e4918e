"""Settings of the optimizer (group `optim`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, its schedule and its average. `ema_decay` None keeps no average; `min_lr_ratio` belongs to cosine."""

    lr: float = setting(above=0.0, maximum=1.0, remedy="AdamW on a DiT usually takes 1e-5 to 2e-3")
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = setting(0.1, minimum=0.0)
    eps: float = setting(1e-8, above=0.0)
    warmup_steps: int = setting(0, minimum=0)
    schedule: Literal["constant", "cosine"] = "constant"
    min_lr_ratio: float | None = setting(None, minimum=0.0, maximum=1.0)
    clip: float | None = setting(1.0, above=0.0)
    ema_decay: float | None = setting(0.9999, minimum=0.0, maximum=1.0)
