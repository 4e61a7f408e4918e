"""3D rotary positions over (t, y, x), as in Wan: the head is cut into a time, a height and a width part."""

from __future__ import annotations

from typing import Any

import torch

THETA = 10_000.0


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Even widths of the (t, y, x) parts of a head; height and width take a third each, time the rest."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def rotary_table(position: torch.Tensor, head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Unit complex numbers that rotate each pair of a head.

    position [N, 3] -> [N, head_dim / 2] complex64 (complex128 for float64). Angles are formed in float64.
    """
    angles = []
    for axis, width in enumerate(axis_widths(head_dim)):
        exponent = torch.arange(0, width, 2, dtype=torch.float64, device=position.device) / width
        angles.append(position[:, axis, None].to(torch.float64) * THETA**-exponent)
    angle = torch.cat(angles, dim=1)
    table = torch.polar(torch.ones_like(angle), angle)
    return table if dtype == torch.float64 else table.to(torch.complex64)


class _Rotate(torch.autograd.Function):
    """A rotation's gradient is the rotation back: nothing but the table is kept."""

    @staticmethod
    def forward(ctx: Any, heads: torch.Tensor, table: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(table)
        return _turn(heads, table)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (table,) = ctx.saved_tensors
        return _turn(grads[0].contiguous(), table.conj()), None


def rotate(heads: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring pairs: heads [N, A, h] by table [N, h / 2]; computed in the table's precision."""
    out: torch.Tensor = _Rotate.apply(heads, table)
    return out


def _turn(heads: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    real = torch.float64 if table.dtype == torch.complex128 else torch.float32
    pairs = torch.view_as_complex(_cast(heads, real).unflatten(-1, (-1, 2)))
    return _cast(torch.view_as_real(pairs * table[:, None]).flatten(-2), heads.dtype)


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # where a Function ends in a cast that changes nothing, compiled code (torch 2.11) gives its input no gradient
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
