"""FP8 products: Transformer Engine's recipes by name, and the numerics of per-tensor current scaling in plain torch.

The plain form is the numeric model of TE's `Float8CurrentScaling`: E4M3 for inputs and weights, E5M2 for gradients,
each scaled by its own largest magnitude just before the product. It runs on CPU and GPU.

Shape legend: n tokens, I input features, O output features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from megavideo.config.schema.precision import Fp8Kind
from megavideo.errors import ConfigError

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
ALIGNMENT = 16
_FLOAT_MAX = torch.finfo(torch.float32).max


def build_recipe(fp8: Fp8Kind, *, shared_scales: bool = False) -> Any:
    """Transformer Engine's recipe; None for `none`. Needs TE.

    `shared_scales`: delayed scales are agreed on by the ranks of the group given to `autocast`.
    """
    if fp8 == "none":
        return None
    from transformer_engine.common import recipe

    if fp8 == "delayed":
        return recipe.DelayedScaling(reduce_amax=shared_scales)
    names = {"current": "Float8CurrentScaling", "block": "Float8BlockScaling", "mxfp8": "MXFP8BlockScaling"}
    return getattr(recipe, names[fp8])()


def is_excluded(name: str, exclude: Sequence[str]) -> bool:
    """Whether a dotted layer name holds one of the parts, whole words only: `blocks.1` is no part of `blocks.10.q`."""
    return any(f".{part}." in f".{name}." for part in exclude)


def quantize(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`values` as FP8 with the largest magnitude at the format's end, and the float32 factor that scales them back.

    All zeros and infinite values are scaled by one, as in TE. Non-finite values stay non-finite, so that a step that
    overflows is seen.
    """
    largest = values.abs().amax().float() if values.numel() else values.new_zeros((), dtype=torch.float32)
    scale = (torch.finfo(dtype).max / largest).clamp(max=_FLOAT_MAX)
    scale = torch.where((largest == 0) | torch.isinf(largest), 1.0, scale)
    # the product may exceed the format's end by a rounding, and is rounded back to it
    return (values.float() * scale).to(dtype), scale.reciprocal()


def scaled_product(
    left: tuple[torch.Tensor, torch.Tensor],
    right: tuple[torch.Tensor, torch.Tensor],
    dtype: torch.dtype,
    *,
    fast: bool = False,
) -> torch.Tensor:
    """[M, K] x [N, K] -> left @ right.T [M, N] of two quantized matrices, in `dtype`; K and N divide by 16.

    `fast` lets a GPU keep its partial sums in fewer bits, as TE does in the forward pass; a CPU takes no notice.
    """
    (a, a_factor), (b, b_factor) = left, right
    return torch._scaled_mm(
        a.contiguous(), b.contiguous().t(), scale_a=a_factor, scale_b=b_factor, out_dtype=dtype, use_fast_accum=fast
    )


class _Fp8Product(torch.autograd.Function):
    """x [n, I], weight [O, I] -> x @ weight.T [n, O], with all three products of forward and backward in FP8."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        (x8, x_factor), (w8, w_factor) = quantize(x, FORWARD), quantize(weight, FORWARD)
        ctx.save_for_backward(x8, x_factor, w8, w_factor)
        ctx.weight_dtype = weight.dtype
        return scaled_product((_padded(x8), x_factor), (w8, w_factor), x.dtype, fast=True)[: x.shape[0]]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x8, x_factor, w8, w_factor = ctx.saved_tensors
        g8, g_factor = quantize(grads[0], BACKWARD)
        num_tokens, dtype = g8.shape[0], grads[0].dtype
        x8, g8 = _padded(x8), _padded(g8)
        to_input = to_weight = None
        if ctx.needs_input_grad[0]:
            to_input = scaled_product((g8, g_factor), (w8.t(), w_factor), dtype)[:num_tokens]
        if ctx.needs_input_grad[1]:
            to_weight = scaled_product((g8.t(), g_factor), (x8.t(), x_factor), ctx.weight_dtype)
        return to_input, to_weight


class Fp8Linear(nn.Module):
    """A linear layer whose products are in FP8; it holds the parameters of the `nn.Linear` it stands for.

    Raises ConfigError where the layer's features do not divide by 16.
    """

    def __init__(self, linear: nn.Linear, name: str = "") -> None:
        super().__init__()
        shape = tuple(linear.weight.shape)
        if any(size % ALIGNMENT for size in shape):
            raise ConfigError(
                "layers.fp8_exclude", None, f"the layer {name} is {shape[1]} -> {shape[0]}, and FP8 products need "
                f"features that divide by {ALIGNMENT}", f"add {name} to layers.fp8_exclude, or change the model's sizes"
            )  # fmt: skip
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., I] -> [..., O]; tokens are padded to 16 with zeros for the products."""
        out: torch.Tensor = _Fp8Product.apply(x.flatten(0, -2), self.weight.to(x.dtype))
        out = out.unflatten(0, x.shape[:-1])
        return out if self.bias is None else out + self.bias.to(x.dtype)


@contextmanager
def emulated_fp8(model: nn.Module, exclude: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Within the block, each `nn.Linear` of `model` that is not excluded is an `Fp8Linear`; yields their names."""
    replaced: list[tuple[str, nn.Linear]] = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not is_excluded(name, exclude)
    ]
    stand_ins = [(name, Fp8Linear(linear, name)) for name, linear in replaced]
    try:
        for name, stand_in in stand_ins:
            model.set_submodule(name, stand_in)
        yield tuple(name for name, _ in replaced)
    finally:
        for name, linear in replaced:
            model.set_submodule(name, linear)


def _padded(rows: torch.Tensor) -> torch.Tensor:
    """Rows of zeros added up to a multiple of 16; FP8 tensors are padded as bytes, of which zero is zero."""
    missing = -rows.shape[0] % ALIGNMENT
    return F.pad(rows.view(torch.uint8), (0, 0, 0, missing)).view(rows.dtype) if missing else rows
