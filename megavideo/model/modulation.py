"""adaLN on packs: each token is shifted, scaled and gated by its row of a small conditioning table.

Shape legend: N tokens, R rows of the table, D width. The tables stay small ([R, D]) in memory: nothing
of size [N, D] is kept for the backward pass but the inputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from megavideo.model.rows import Rows


class _NormModulate(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, rows: Rows, eps: float
    ) -> torch.Tensor:
        normed, mean, rstd = torch.native_layer_norm(x, (x.shape[-1],), None, None, eps)
        ctx.rows, ctx.eps = rows, eps
        ctx.save_for_backward(x, scale, mean, rstd)
        return rows.affine(shift, normed, 1 + scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x, scale, mean, rstd = ctx.saved_tensors
        rows: Rows = ctx.rows
        normed = ((x - mean) * rstd).to(grad.dtype)
        grad_scale = rows.gather_sum(grad * normed)
        grad_shift = rows.gather_sum(grad)
        grad_normed = rows.scale(grad, 1 + scale)
        grad_x, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad_normed, x, (x.shape[-1],), mean, rstd, None, None, [True, False, False]
        )
        return grad_x, grad_shift, grad_scale, None, None


class _GatedAdd(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: torch.Tensor, branch: torch.Tensor, gate: torch.Tensor, rows: Rows
    ) -> torch.Tensor:
        ctx.rows = rows
        ctx.save_for_backward(branch, gate)
        return rows.gated_add(x, branch, gate)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        branch, gate = ctx.saved_tensors
        return grad, ctx.rows.scale(grad, gate), ctx.rows.gather_sum(grad * branch), None


def norm_modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, rows: Rows, eps: float) -> torch.Tensor:
    """LayerNorm(x) * (1 + scale) + shift: x [N, D]; shift and scale [R, D] (DiT, Peebles and Xie 2023)."""
    out: torch.Tensor = _NormModulate.apply(x, shift, scale, rows, eps)
    return out


def gated_add(x: torch.Tensor, branch: torch.Tensor, gate: torch.Tensor, rows: Rows) -> torch.Tensor:
    """x + gate * branch: x and branch [N, D]; gate [R, D]."""
    out: torch.Tensor = _GatedAdd.apply(x, branch, gate, rows)
    return out


def sinusoid(value: torch.Tensor, width: int) -> torch.Tensor:
    """Sinusoidal features of scalars: value [K] -> [K, width] float32, cosines first (as in diffusers' Wan)."""
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=value.device) / half
    angle = value.to(torch.float32)[:, None] * torch.exp(-torch.log(torch.tensor(10_000.0)) * exponent)
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=1), (0, width % 2))
