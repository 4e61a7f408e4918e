"""Which parameters decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from megavideo.parallel.layers.sharding import part_shape


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices decay; biases, norms and modulation tables do not. Frozen parameters are in none."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = len(part_shape(parameter)) >= 2 and "norm" not in name and "modulation_table" not in name
        (decayed if is_matrix else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]  # adapters are matrices alone
