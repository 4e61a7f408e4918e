"""The norm of a gradient that is spread over the ranks of a model, and the clipping by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from megavideo.parallel.layers.sharding import shard_of
from megavideo.parallel.processes.groups import Groups


class ClippedStep:
    """A hook before an optimizer's step: forms the norm over the whole model, clips by it, and remembers it.

    It expects whole gradients, alike on every data-parallel rank. Where the norm is not finite every gradient becomes
    NaN, so that each rank's optimizer leaves its states as they were.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], groups: Groups, clip: float | None) -> None:
        self._parameters = parameters
        self._groups = groups
        self._clip = clip
        self.norm = 0.0
        self.applied = True

    def __call__(self, optimizer: torch.optim.Optimizer, arguments: Any, options: Any) -> None:
        """Before the update."""
        norm = math.sqrt(self._square_sum())
        self.applied = math.isfinite(norm)
        self.norm = norm if self.applied else math.inf
        scale = math.nan if not self.applied else min(1.0, self._clip / (norm + 1e-6)) if self._clip else 1.0
        if scale != 1.0:
            torch._foreach_mul_([p.grad for p in self._parameters if p.grad is not None], scale)

    def _square_sum(self) -> float:
        tp = self._groups.tp.size()
        device = self._parameters[0].device
        total = torch.zeros((), dtype=torch.float64, device=device)
        for parameter in self._parameters:
            if parameter.grad is not None:
                square = parameter.grad.double().square().sum()
                # every tp rank has the same gradient of a parameter that is not sharded
                total += square if shard_of(parameter, 0, tp).count > 1 else square / tp
        dist.all_reduce(total, group=self._groups.replica)
        return float(total)
