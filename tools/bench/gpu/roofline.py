"""Counts what a step dispatches, on meta tensors: FLOPs and bytes of every operation, by the kind of limit it has.

An operation that is no product is taken to read its inputs and write its outputs once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
_ATTENTION = ("attend_", "scaled_dot_product")
_FREE = {"detach", "alias", "view", "_unsafe_view", "t", "lift_fresh", "_reshape_alias", "empty", "empty_like"}
_FREE |= {"empty_strided", "new_empty", "new_empty_strided"}
_WRITES_ONLY = {"zeros", "ones", "zeros_like", "ones_like", "full", "arange", "new_zeros", "fill_", "zero_"}
_READS_WHAT_IT_WRITES = {"index", "index_select", "embedding", "gather"}


@dataclass
class Counted:
    """Products as (rows, in, out) -> how many; FLOPs of attention by pass; bytes of all else; number of operations."""

    products: dict[tuple[int, int, int], float] = field(default_factory=dict)
    attention_forward: float = 0.0
    attention_backward: float = 0.0
    other_bytes: float = 0.0
    operations: float = 0.0

    def plus(self, other: Counted, times: float = 1.0) -> Counted:
        """The sum with `times` another."""
        shapes = [*self.products, *(shape for shape in other.products if shape not in self.products)]
        return Counted(
            {shape: self.products.get(shape, 0.0) + times * other.products.get(shape, 0.0) for shape in shapes},
            self.attention_forward + times * other.attention_forward,
            self.attention_backward + times * other.attention_backward,
            self.other_bytes + times * other.other_bytes,
            self.operations + times * other.operations,
        )


def count_step(call: Callable[[], torch.Tensor], segments: Sequence[tuple[int, int]]) -> Counted:
    """Forward and backward of `call`, whose packs have `segments` of (video, text) tokens."""
    counting = _Counting(segments)
    with one_norm(), counting:
        call().float().square().mean().backward()
    return counting.counted


class _Counting(TorchDispatchMode):
    def __init__(self, segments: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.counted = Counted()
        self._self_pairs = sum(video * video for video, _ in segments)
        self._text_pairs = sum(video * text for video, text in segments)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        outputs = _tensors(out)
        if function.is_view or name in _FREE or not outputs:
            return out
        self.counted.operations += 1
        inputs = _tensors((args, kwargs or {}))
        if name in _PRODUCTS:
            self._add_product(inputs[-2], inputs[-1])
        elif any(part in name for part in _ATTENTION):
            self._add_attention(name, inputs)
        elif name in _WRITES_ONLY:
            self.counted.other_bytes += sum(map(_touched, outputs))
        elif name in _READS_WHAT_IT_WRITES:
            self.counted.other_bytes += 2 * sum(map(_touched, outputs))
        else:
            self.counted.other_bytes += sum(map(_touched, [*inputs, *outputs]))
        return out

    def _add_product(self, left: torch.Tensor, right: torch.Tensor) -> None:
        shape = (math.prod(left.shape[:-1]), left.shape[-1], right.shape[-1])
        self.counted.products[shape] = self.counted.products.get(shape, 0.0) + 1

    def _add_attention(self, name: str, inputs: Sequence[torch.Tensor]) -> None:
        backward = name.endswith("backward")
        query, key = inputs[1 if backward else 0], inputs[2 if backward else 1]
        pairs = self._self_pairs if key.shape[0] == query.shape[0] else self._text_pairs
        flops = 4.0 * pairs * query.shape[1] * query.shape[2]
        if backward:
            self.counted.attention_backward += 2.5 * flops
        else:
            self.counted.attention_forward += flops


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _touched(tensor: torch.Tensor) -> int:
    """Bytes of the elements that lie in memory; an expanded dim is there once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(sizes) * tensor.element_size()


@contextmanager
def one_norm() -> Iterator[None]:
    """RMS norm as the one kernel, forward and backward, that a GPU has; on meta tensors torch takes it to pieces."""
    # no mode of torch's: those are off in what the backward pass computes again
    before = F.rms_norm
    F.rms_norm = _rms_norm  # type: ignore[assignment]
    try:
        yield
    finally:
        F.rms_norm = before


def _rms_norm(x: torch.Tensor, normalized_shape: Any, weight: torch.Tensor, eps: float | None = None) -> Any:
    return _RmsNorm.apply(x, weight)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        out, scale = _norm_operators()[0](x, weight)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _norm_operators()[1](grads[0], *ctx.saved_tensors)


def _norm_operators() -> tuple[Any, Any]:
    packets = torch.ops.megavideo_bench
    return packets.rms_norm.default, packets.rms_norm_backward.default


_LIBRARY = torch.library.Library("megavideo_bench", "DEF")
_LIBRARY.define("rms_norm(Tensor x, Tensor weight) -> (Tensor, Tensor)")
_LIBRARY.define("rms_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor scale) -> (Tensor, Tensor)")
_LIBRARY.impl(
    "rms_norm",
    lambda x, weight: (torch.empty(x.shape, dtype=x.dtype, device="meta"), x.new_empty((*x.shape[:-1], 1)).float()),
    "Meta",
)
_LIBRARY.impl(
    "rms_norm_backward",
    lambda grad, x, weight, scale: (torch.empty(x.shape, dtype=x.dtype, device="meta"), torch.empty_like(weight)),
    "Meta",
)
