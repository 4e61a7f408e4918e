"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math

from megavideo.config.schema.optim import OptimConfig


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """The rate of the `step`th update, from 0: linear warm-up, then constant, a cosine or constant with a linear end.

    The cosine, and the last `decay_steps` of wsd (Hu et al. 2024, section 4; linear as in Haegele et al. 2024), go from
    `lr` to `lr * min_lr_ratio`, which they would have one step after the last of `num_steps`.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    floor = config.min_lr_ratio or 0.0
    if config.schedule == "wsd":
        assert config.decay_steps is not None, "the rules ask for it"
        fallen = min(1.0, max(0.0, 1.0 - (num_steps - step) / config.decay_steps))
        return config.lr * (1.0 - (1.0 - floor) * fallen)
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    return config.lr * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))
