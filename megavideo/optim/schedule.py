"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math

from megavideo.config.schema.optim import OptimConfig


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """The rate of the `step`th update, from 0: linear warm-up, then constant or a cosine.

    The cosine goes from `lr` to `lr * min_lr_ratio`, which it would have one step after the last of `num_steps`.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    floor = config.min_lr_ratio or 0.0
    return config.lr * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))
