"""Ring attention on packs: each rank holds a run of tokens, and sends its keys and values only where they are needed.

Two runs of a pack can have one segment in common at most, the one that crosses every border between them. So at step s
a rank sends rank + s the keys and values of that segment's tokens, and nothing where there is none. Partial results
are merged by their log-sum-exp (Liu et al. 2023, Ring Attention; Milakov and Gimelshein 2018 for the merge). The
backward pass sends keys and values again, and their gradients back to the owner.

Shape legend: n tokens of a rank's run, A heads, h head width, R ranks of the ring.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megavideo.model.attention import Segments, attend_varlen, attend_varlen_backward


@dataclass(frozen=True)
class RingPlan:
    """Who sends what to whom in the attention of one pack, as seen by one rank.

    `queries[s]` is the run of own tokens that attends to the block which arrives from rank - s, `sent[s]` the run of
    own keys that rank + s needs, `received[s]` the length of the block which arrives; None where nothing is shared.
    `own` delimits the segments inside the rank's run.
    """

    group: dist.ProcessGroup
    rank: int
    own: Segments
    queries: tuple[slice | None, ...]
    sent: tuple[slice | None, ...]
    received: tuple[int, ...]

    @classmethod
    def of(cls, segments: Segments, run_tokens: int, group: dist.ProcessGroup) -> RingPlan:
        """The plan of this rank for the segments of a whole pack, cut into runs of `run_tokens`."""
        rank, size = group.rank(), group.size()
        bounds = segments.host_bounds()
        queries: list[slice | None] = [None]
        sent: list[slice | None] = [None]
        received = [0]
        for step in range(1, size):
            source, target = (rank - step) % size, (rank + step) % size
            from_source = shared_runs(bounds, run_tokens, rank, source)
            to_target = shared_runs(bounds, run_tokens, rank, target)
            queries.append(from_source[0] if from_source else None)
            received.append(from_source[1].stop - from_source[1].start if from_source else 0)
            sent.append(to_target[0] if to_target else None)
        own = segments.clipped(rank * run_tokens, (rank + 1) * run_tokens)
        return cls(group, rank, own, tuple(queries), tuple(sent), tuple(received))

    @property
    def size(self) -> int:
        """Ranks of the ring."""
        return len(self.queries)

    def peer(self, offset: int) -> int:
        """Global rank of the ring's member at `rank + offset`."""
        return dist.get_global_rank(self.group, (self.rank + offset) % self.size)


def shared_runs(bounds: Sequence[int], run_tokens: int, mine: int, other: int) -> tuple[slice, slice] | None:
    """The tokens, in their own runs, by which two ranks' runs share a segment; None where they share none."""
    low, high = min(mine, other), max(mine, other)
    for begin, end in itertools.pairwise(bounds):
        if begin < (low + 1) * run_tokens and end > high * run_tokens:
            return _part(begin, end, run_tokens, mine), _part(begin, end, run_tokens, other)
    return None


def ring_attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: RingPlan) -> torch.Tensor:
    """Attention of a rank's tokens to all tokens of their segments: all [n, A, h] -> [n, A, h]."""
    out: torch.Tensor = _Ring.apply(query, key, value, plan)
    return out


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: RingPlan
    ) -> torch.Tensor:
        out, lse = attend_varlen(query, key, value, plan.own, plan.own)
        wide = out.to(lse.dtype)
        coming = _send_keys(key, value, plan, 1)
        for step in range(1, plan.size):
            block, coming = coming.wait(), _send_keys(key, value, plan, step + 1)
            rows = plan.queries[step]
            if block is not None and rows is not None:
                part, part_lse = attend_varlen(query[rows], block[0], block[1], *_one_segment(query[rows], block[0]))
                wide[rows], lse[:, rows] = _merge(wide[rows], lse[:, rows], part, part_lse)
        out = wide.to(query.dtype)
        ctx.plan = plan
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        plan: RingPlan = ctx.plan
        query, key, value, out, lse = ctx.saved_tensors
        grad = grads[0].contiguous()
        inputs = (query, key, value)
        totals = [t.to(lse.dtype) for t in attend_varlen_backward(grad, inputs, out, lse, plan.own, plan.own)]
        coming = _send_keys(key, value, plan, 1)
        for step in range(1, plan.size):
            block, coming = coming.wait(), _send_keys(key, value, plan, step + 1)
            rows, found = plan.queries[step], None
            if block is not None and rows is not None:
                segments = _one_segment(query[rows], block[0])
                parts = (query[rows], block[0], block[1])
                dq, dk, dv = attend_varlen_backward(
                    grad[rows], parts, out[rows], lse[:, rows].contiguous(), segments[0], segments[1]
                )
                totals[0][rows] += dq
                found = torch.stack([dk, dv])
            returned = _send_gradients(found, key, plan, step).wait()
            sent = plan.sent[step]
            if returned is not None and sent is not None:
                totals[1][sent] += returned[0]
                totals[2][sent] += returned[1]
        return (*(total.to(t.dtype) for total, t in zip(totals, inputs, strict=True)), None)


@dataclass(frozen=True)
class _Coming:
    """A block on its way; `sent` is kept alive until it has left."""

    works: Sequence[Any]
    block: torch.Tensor | None
    sent: torch.Tensor | None

    def wait(self) -> torch.Tensor | None:
        for work in self.works:
            work.wait()
        return self.block


def _send_keys(key: torch.Tensor, value: torch.Tensor, plan: RingPlan, step: int) -> _Coming:
    """Start step `step`'s exchange: own keys and values [2, k, A, h] to rank + step, those of rank - step to here."""
    if step >= plan.size:
        return _Coming((), None, None)
    rows = plan.sent[step]
    outgoing = None if rows is None else torch.stack([key[rows], value[rows]])
    return _start(outgoing, plan.received[step], key, plan, step)


def _send_gradients(found: torch.Tensor | None, key: torch.Tensor, plan: RingPlan, step: int) -> _Coming:
    """Gradients of the block that came from rank - step back to it; those of the block sent to rank + step to here."""
    rows = plan.sent[step]
    return _start(found, 0 if rows is None else rows.stop - rows.start, key, plan, -step)


def _start(outgoing: torch.Tensor | None, arriving: int, like: torch.Tensor, plan: RingPlan, offset: int) -> _Coming:
    block = like.new_empty(2, arriving, *like.shape[1:]) if arriving else None
    operations = []
    if outgoing is not None:
        operations.append(dist.P2POp(dist.isend, outgoing, plan.peer(offset), group=plan.group))
    if block is not None:
        operations.append(dist.P2POp(dist.irecv, block, plan.peer(-offset), group=plan.group))
    return _Coming(dist.batch_isend_irecv(operations) if operations else (), block, outgoing)


def _merge(
    out: torch.Tensor, lse: torch.Tensor, part: torch.Tensor, part_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two softmax averages [n, A, h] over disjoint keys, by their log-sum-exp [A, n], to the one over both."""
    total = torch.logaddexp(lse, part_lse)
    share, part_share = ((x - total).exp().transpose(0, 1).unsqueeze(-1) for x in (lse, part_lse))
    return out * share + part.to(out.dtype) * part_share, total


def _one_segment(query: torch.Tensor, key: torch.Tensor) -> tuple[Segments, Segments]:
    """Segments of a block in which every query attends to every key."""
    found = []
    for rows in (query.shape[0], key.shape[0]):
        # made where it is: a copy from the host would wait for the device
        cu_seqlens = torch.arange(0, rows + 1, rows, dtype=torch.int32, device=query.device)
        found.append(Segments(cu_seqlens, (0, rows), rows))
    return found[0], found[1]


def _part(begin: int, end: int, run_tokens: int, index: int) -> slice:
    start = index * run_tokens
    return slice(max(begin, start) - start, min(end, start + run_tokens) - start)
