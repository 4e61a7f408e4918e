"""torch's RMS norm on the meta device as a GPU has it, so that what it keeps for the backward pass counts the same.

Everywhere but on a GPU it is made of a dozen operators, of which several keep a float32 tensor of the input's size; the
GPU's own kernel keeps its input and one number a row (`_fused_rms_norm` of torch 2.11).

Shape legend: n rows, D width.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> Any:  # type: ignore[override]
        scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
        ctx.save_for_backward(x, weight, scale)
        ctx.mark_non_differentiable(scale)
        return torch.empty_like(x), scale

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


@cache
def rms_norm_as_on_a_gpu() -> torch.library.Library:
    """From now on, in this process, RMS norms of meta tensors [n, D] with a weight [D] keep what a GPU's keep."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_fused_rms_norm", lambda x, shape, weight, eps: _RmsNorm.apply(x, weight), "AutogradMeta")
    return library
