"""How fast a kernel is on packs of a shape, forward and backward."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from megavideo.model.attention.operator import Attention
from megavideo.model.attention.segments import Segments
from megavideo.parallel.machine.timer import timer_of

_WARM_UP, _REPEATS = 2, 5
# multiplications and additions of a pair of tokens and an element of a head: two products forward, five backward
_FORWARD, _BACKWARD = 4, 10


@dataclass(frozen=True)
class Shape:
    """Lengths of the segments on either side, number of heads and width of a head."""

    lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    heads: int
    head_dim: int

    @property
    def work(self) -> int:
        """Pairs of tokens, times elements of all heads."""
        pairs = sum(q * k for q, k in zip(self.lengths, self.key_lengths, strict=True))
        return pairs * self.heads * self.head_dim


@dataclass(frozen=True)
class Speed:
    """Median milliseconds of a call, and floating-point operations a second in 10^12."""

    kernel: str
    forward_ms: float
    backward_ms: float
    forward_tflops: float
    backward_tflops: float


def time_kernel(attention: Attention, shape: Shape, dtype: torch.dtype, device: torch.device) -> Speed:
    """Time forward and backward of random packs without a tail."""
    generator = torch.Generator(device).manual_seed(0)

    def tokens(count: int) -> torch.Tensor:
        return torch.randn(count, shape.heads, shape.head_dim, generator=generator, device=device).to(dtype)

    num_queries, num_keys = sum(shape.lengths), sum(shape.key_lengths)
    inputs = (tokens(num_queries), tokens(num_keys), tokens(num_keys))
    grad = tokens(num_queries)
    queries, keys = (Segments.of(_bounds(lengths), device) for lengths in (shape.lengths, shape.key_lengths))
    out, lse = attention(*inputs, queries, keys)
    forward = _median_ms(lambda: attention(*inputs, queries, keys), device)
    backward = _median_ms(lambda: attention.backward(grad, inputs, out, lse, queries, keys), device)
    return Speed(
        attention.kernel.name,
        forward,
        backward,
        _FORWARD * shape.work / forward / 1e9,
        _BACKWARD * shape.work / backward / 1e9,
    )


def _bounds(lengths: tuple[int, ...]) -> list[int]:
    bounds = [0]
    for length in lengths:
        bounds.append(bounds[-1] + length)
    return bounds


def _median_ms(call: Callable[[], object], device: torch.device) -> float:
    for _ in range(_WARM_UP):
        call()
    timer = timer_of(device)
    timer.mark()
    for _ in range(_REPEATS):
        call()
        timer.mark()
    return statistics.median(timer.laps()) * 1e3
