"""Collectives with gradients, each stated by what it does forward and backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


class _SumGradients(torch.autograd.Function):
    """The identity, whose gradient is summed over the group: for what all ranks hold and each uses in part."""

    @staticmethod
    def forward(ctx: Any, shared: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:  # type: ignore[override]
        ctx.group = group
        return shared.view_as(shared)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _SumBoth(torch.autograd.Function):
    """A sum over the group, of which every rank uses the result for its own part: the gradient is summed as well."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:  # type: ignore[override]
        ctx.group = group
        total = part.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _Exchange(torch.autograd.Function):
    """All-to-all of equal slices along the first dim: slice i of the input goes to rank i; the gradient goes back."""

    @staticmethod
    def forward(ctx: Any, slices: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:  # type: ignore[override]
        ctx.group = group
        return _all_to_all(slices, group)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _all_to_all(grads[0], ctx.group), None


class _Gather(torch.autograd.Function):
    """All parts along the first dim, in the order of ranks; each rank's use of a part is summed back to its owner."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:  # type: ignore[override]
        ctx.group = group
        whole = part.new_empty(group.size() * part.shape[0], *part.shape[1:])
        dist.all_gather_into_tensor(whole, part.contiguous(), group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad = grads[0].contiguous()
        part = grad.new_empty(grad.shape[0] // ctx.group.size(), *grad.shape[1:])
        dist.reduce_scatter_tensor(part, grad, group=ctx.group)
        return part, None


def sum_gradients(shared: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """`shared` itself; its gradient is summed over the group."""
    out: torch.Tensor = _SumGradients.apply(shared, group)
    return out


def sum_both_ways(part: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The sum of `part` over the group; its gradient is summed too, since each rank's use of it counts."""
    out: torch.Tensor = _SumBoth.apply(part, group)
    return out


def exchange(slices: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """All-to-all along the first dim, whose size is the group's: [P, ...] -> [P, ...]."""
    out: torch.Tensor = _Exchange.apply(slices, group)
    return out


def gather(part: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The parts [n, ...] of all ranks, as [P * n, ...]; the gradient is a sum over ranks, back to each part's owner."""
    out: torch.Tensor = _Gather.apply(part, group)
    return out


def _all_to_all(slices: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    out = torch.empty_like(slices, memory_format=torch.contiguous_format)
    dist.all_to_all_single(out, slices.contiguous(), group=group)
    return out
