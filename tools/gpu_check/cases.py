"""Packs for the checks of an attention kernel, and what is right of them: a loop over segments in float64.

Shape legend: N query tokens, M key tokens, A heads, h head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from megavideo.model.attention.operator import Attention
from megavideo.model.attention.segments import Segments

HEADS = 2


@dataclass(frozen=True)
class Subject:
    """The attention under test, where it runs and in which precision."""

    attention: Attention
    device: torch.device
    dtype: torch.dtype

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Case:
    """A pack: query [N, A, h], key and value [M, A, h], a gradient of the output [N, A, h], and the segments."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    grad: torch.Tensor
    queries: Segments
    keys: Segments

    @property
    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value."""
        return self.query, self.key, self.value

    def with_tails(self, fill: float) -> Case:
        """The same pack, with `fill` in all rows of no segment."""
        parts = [t.clone() for t in (*self.inputs, self.grad)]
        ends = (self.queries.bounds[-1], self.keys.bounds[-1], self.keys.bounds[-1], self.queries.bounds[-1])
        for tensor, end in zip(parts, ends, strict=True):
            tensor[end:] = fill
        return replace(self, query=parts[0], key=parts[1], value=parts[2], grad=parts[3])


@dataclass(frozen=True)
class Results:
    """Output [N, A, h], log-sum-exp [A, N], and the gradients of query, key and value."""

    out: torch.Tensor
    lse: torch.Tensor
    dq: torch.Tensor
    dk: torch.Tensor
    dv: torch.Tensor

    def in_one_order(self) -> dict[str, torch.Tensor]:
        """What every kernel sums in a fixed order: all but the gradient of the query."""
        return {"output": self.out, "log-sum-exp": self.lse, "gradient of key": self.dk, "gradient of value": self.dv}


def make(
    subject: Subject,
    lengths: Sequence[int],
    key_lengths: Sequence[int] | None = None,
    *,
    head_dim: int = 64,
    tails: tuple[int, int] = (0, 0),
    heads: int = HEADS,
) -> Case:
    """A pack of random tokens with segments of these lengths (those of the keys are the same where none are given)."""
    key_lengths = lengths if key_lengths is None else key_lengths
    generator = torch.Generator(subject.device).manual_seed(sum(lengths) + head_dim)
    sizes = (sum(lengths) + tails[0], sum(key_lengths) + tails[1])

    def tokens(count: int) -> torch.Tensor:
        return torch.randn(count, heads, head_dim, generator=generator, device=subject.device).to(subject.dtype)

    return Case(
        tokens(sizes[0]),
        tokens(sizes[1]),
        tokens(sizes[1]),
        tokens(sizes[0]),
        segments(lengths, subject.device),
        segments(key_lengths, subject.device),
    )


def segments(lengths: Sequence[int], device: torch.device) -> Segments:
    """Segments of these lengths."""
    return Segments.of([0, *itertools.accumulate(lengths)], device)


def run(attention: Attention, case: Case) -> Results:
    """Forward and backward through autograd."""
    inputs = [t.detach().requires_grad_() for t in case.inputs]
    out, lse = attention(inputs[0], inputs[1], inputs[2], case.queries, case.keys)
    return Results(out.detach(), lse.detach(), *torch.autograd.grad(out, inputs, case.grad))


def exact(case: Case) -> Results:
    """In float64, segment by segment; zeros in all rows of no segment."""
    return _loop(case, torch.float64)


def eager(case: Case) -> Results:
    """The same loop in the precision of the pack: how wrong a careful program of plain torch is."""
    return _loop(case, case.query.dtype)


def pieces(case: Case) -> Iterator[tuple[slice, slice]]:
    """Rows of queries and of keys of each segment."""
    bounds = (itertools.pairwise(each.bounds) for each in (case.queries, case.keys))
    for (q0, q1), (k0, k1) in zip(*bounds, strict=True):
        yield slice(q0, q1), slice(k0, k1)


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    """The largest difference of one element; infinite where one is not a number."""
    if found.shape != right.shape:
        raise AssertionError(f"shape {tuple(found.shape)}, not {tuple(right.shape)}")
    worst = (found.double() - right.double()).abs().nan_to_num(torch.inf)
    return float(worst.max()) if worst.numel() else 0.0


def _loop(case: Case, dtype: torch.dtype) -> Results:
    query, key, value = (t.detach().to(dtype).requires_grad_() for t in case.inputs)
    lse = torch.zeros(query.shape[1], query.shape[0], dtype=torch.float64, device=query.device)
    # split, whose gradient is one concatenation
    parts = [_split(t, each) for t, each in ((query, case.queries), (key, case.keys), (value, case.keys))]
    outs = []
    for (rows, _), q, k, v in zip(pieces(case), *parts, strict=False):
        scores = torch.einsum("nah,mah->anm", q, k) * query.shape[-1] ** -0.5
        lse[:, rows] = scores.detach().double().logsumexp(-1)
        outs.append(torch.einsum("anm,mah->nah", scores.softmax(-1), v))
    out = torch.cat([*outs, torch.zeros_like(parts[0][-1])])
    grads = torch.autograd.grad(out, (query, key, value), case.grad.to(dtype))
    return Results(out.detach(), lse, *(t.detach() for t in grads))


def _split(tensor: torch.Tensor, segments: Segments) -> tuple[torch.Tensor, ...]:
    """Each segment's rows, and last those of none."""
    lengths = [end - begin for begin, end in itertools.pairwise(segments.bounds)]
    return tensor.split([*lengths, tensor.shape[0] - segments.bounds[-1]])
