"""The optimizer of a run."""

from __future__ import annotations

from torch import nn

from megavideo.config.schema.optim import OptimConfig
from megavideo.optim.adamw import AdamWWithEma
from megavideo.optim.groups import parameter_groups


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamWWithEma:
    """AdamW over the model's parameters; its rate is set at each step."""
    return AdamWWithEma(
        parameter_groups(model, config.weight_decay),
        ema_decay=config.ema_decay,
        lr=0.0,
        betas=config.betas,
        eps=config.eps,
    )
