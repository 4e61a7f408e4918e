"""Linear layers and norms that are split over tensor-parallel ranks, on megatron-core's column and row layers.

Shape legend: n own tokens, m attended tokens (n * tp under sequence parallel, else n).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from megavideo.parallel.layers.collectives import sum_both_ways, sum_gradients
from megavideo.parallel.layers.megatron import load_megatron, megatron_config
from megavideo.parallel.layers.sharding import mark_sharded


def column_layer(
    in_dim: int, out_dim: int, blocks: int, tp: dist.ProcessGroup, *, sequence_parallel: bool, whole_input: bool = False
) -> nn.Module:
    """Column-parallel linear layer with bias: [n, in_dim] -> [m, out_dim / tp].

    With `whole_input` the input is whole on every rank and its gradient is left to the caller to sum.
    """
    layer: Any = _classes()[0](
        in_dim,
        out_dim,
        config=megatron_config(torch.get_default_dtype(), sequence_parallel and not whole_input),
        init_method=nn.init.zeros_,
        stride=blocks,
        gather_output=False,
        disable_grad_reduce=whole_input,
        tp_group=tp,
    )
    # its bias is marked at construction, its weight only where it initialises it
    mark_sharded(layer.weight, 0, blocks)
    built: nn.Module = layer
    return built


def row_layer(in_dim: int, out_dim: int, tp: dist.ProcessGroup, *, sequence_parallel: bool) -> nn.Module:
    """Row-parallel linear layer with bias: [m, in_dim / tp] -> [n, out_dim]."""
    layer: Any = _classes()[1](
        in_dim,
        out_dim,
        config=megatron_config(torch.get_default_dtype(), sequence_parallel),
        init_method=nn.init.zeros_,
        bias=True,
        input_is_parallel=True,
        skip_bias_add=True,
        tp_group=tp,
    )
    mark_sharded(layer.weight, 1)
    built: nn.Module = layer
    return built


@cache
def _classes() -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
    """megatron-core's layers with the one-tensor forward of `nn.Linear`; made late, with its import."""
    megatron: Any = load_megatron()

    class Column(megatron.ColumnParallelLinear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[0]

    class Row(megatron.RowParallelLinear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out, bias = super().forward(x)
            # under sequence parallel a rank adds the bias to its own tokens only, so that its gradient is partial
            return out + (sum_gradients(bias, self.tp_group) if self.sequence_parallel else bias)

    return Column, Row


class PerTokenLinear(nn.Linear):
    """Linear layer held whole and applied to own tokens: its gradient is summed over the ranks that share them."""

    def __init__(self, in_dim: int, out_dim: int, group: dist.ProcessGroup) -> None:
        super().__init__(in_dim, out_dim)
        self._group = group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, in_dim] -> [n, out_dim]."""
        return F.linear(x, sum_gradients(self.weight, self._group), sum_gradients(self.bias, self._group))


class PerTokenLayerNorm(nn.LayerNorm):
    """LayerNorm of own tokens: the gradients of weight and bias are summed over the ranks that share them."""

    def __init__(self, width: int, eps: float, group: dist.ProcessGroup) -> None:
        super().__init__(width, eps=eps)
        self._group = group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, D] -> [n, D]."""
        weight, bias = sum_gradients(self.weight, self._group), sum_gradients(self.bias, self._group)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class ShardedRmsNorm(nn.Module):
    """RMS norm over a width of which each rank holds a part: the mean square is formed over all of it."""

    def __init__(self, width: int, eps: float, tp: dist.ProcessGroup) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width // tp.size()))
        mark_sharded(self.weight, 0)
        self._width = width
        self._eps = eps
        self._tp = tp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[m, D / tp] -> [m, D / tp]; the mean square is formed in float32, as torch's own norm does."""
        wide = x.double() if x.dtype == torch.float64 else x.float()
        square = sum_both_ways(wide.square().sum(-1, keepdim=True), self._tp)
        return (wide * torch.rsqrt(square / self._width + self._eps)).to(x.dtype) * self.weight
