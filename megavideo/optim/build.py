"""The optimizer of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from megavideo.config.schema.optim import OptimConfig
from megavideo.optim.adamw import AdamWWithEma
from megavideo.optim.groups import parameter_groups
from megavideo.optim.matrices import num_matrices
from megavideo.optim.muon import MuonWithEma


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamWWithEma:
    """AdamW over the model's parameters, or Muon over the blocks' matrices; its rate is set at each step."""
    options: dict[str, Any] = {
        "ema_decay": config.ema_decay, "lr": 0.0, "betas": config.betas, "eps": config.eps,
    }  # fmt: skip
    groups = parameter_groups(model, config.weight_decay)
    if config.algorithm == "adamw":
        return AdamWWithEma(groups, **options)
    assert config.muon_momentum is not None, "a rule demands it"
    matrices = {p: number for name, p in model.named_parameters() if (number := num_matrices(name))}
    # DeepSpeed makes one flat tensor of a group, in which a matrix of Muon and one of AdamW cannot lie together
    decayed, plain = groups
    others = {**decayed, "params": [p for p in decayed["params"] if p not in matrices]}
    return MuonWithEma(
        # the middle of a pipeline has no matrices but those of blocks
        [group for group in ({**decayed, "params": list(matrices)}, others, plain) if group["params"]],
        matrices=matrices,
        momentum=config.muon_momentum,
        dtype=torch.bfloat16 if config.muon_precision == "bf16" else torch.float32,
        **options,
    )
