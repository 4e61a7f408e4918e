"""Ring attention on packs: each rank holds a run of tokens, and sends its keys and values only where they are needed.

Two runs of a pack can have one segment in common at most, the one that crosses every border between them. So at step s
a rank sends rank + s the keys and values of that segment's tokens, and nothing where there is none. Partial results
are merged by their log-sum-exp (Liu et al. 2023, Ring Attention; Milakov and Gimelshein 2018 for the merge). The
backward pass sends keys and values again, and their gradients back to the owner. Exchanges are posted a step ahead of
the attention that needs them, and gradients return during that of the next step.

Shape legend: n tokens of a rank's run, A heads, h head width, R ranks of the ring.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megavideo.model.attention.operator import Attention
from megavideo.model.attention.segments import Segments


@dataclass(frozen=True)
class Block:
    """Keys and values of another rank, all of one segment: own tokens `rows` attend to each of its `num_keys` tokens.

    `queries` and `keys` delimit that one segment on both sides.
    """

    rows: slice
    num_keys: int
    queries: Segments
    keys: Segments

    @classmethod
    def of(cls, rows: slice, theirs: slice, device: torch.device) -> Block:
        """The block in which own tokens `rows` meet another rank's tokens `theirs`."""
        num_keys = theirs.stop - theirs.start
        return cls(rows, num_keys, _one_segment(rows.stop - rows.start, device), _one_segment(num_keys, device))


@dataclass(frozen=True)
class RingPlan:
    """Who sends what to whom in the attention of one pack, as seen by one rank.

    `blocks[s]` is the block that arrives from rank - s and `sent[s]` the run of own keys that rank + s needs; None
    where nothing is shared. `own` delimits the segments inside the rank's run.
    """

    group: dist.ProcessGroup
    rank: int
    own: Segments
    blocks: tuple[Block | None, ...]
    sent: tuple[slice | None, ...]

    @classmethod
    def of(cls, segments: Segments, run_tokens: int, group: dist.ProcessGroup) -> RingPlan:
        """The plan of this rank for the segments of a whole pack, cut into runs of `run_tokens`."""
        rank, size = group.rank(), group.size()
        blocks: list[Block | None] = [None]
        sent: list[slice | None] = [None]
        for step in range(1, size):
            source, target = (rank - step) % size, (rank + step) % size
            arriving = shared_runs(segments.bounds, run_tokens, rank, source)
            leaving = shared_runs(segments.bounds, run_tokens, rank, target)
            blocks.append(None if arriving is None else Block.of(*arriving, segments.cu_seqlens.device))
            sent.append(None if leaving is None else leaving[0])
        own = segments.clipped(rank * run_tokens, (rank + 1) * run_tokens)
        return cls(group, rank, own, tuple(blocks), tuple(sent))

    @property
    def size(self) -> int:
        """Ranks of the ring."""
        return len(self.sent)

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


def ring_attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: RingPlan, attention: Attention
) -> torch.Tensor:
    """Attention of a rank's tokens to all tokens of their segments: all [n, A, h] -> [n, A, h]."""
    out: torch.Tensor = _Ring.apply(query, key, value, plan, attention)
    return out


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: RingPlan, attention: Attention
    ) -> torch.Tensor:
        coming = _send_keys(key, value, plan, 1)
        out, lse = attention(query, key, value, plan.own, plan.own)
        wide = out.to(lse.dtype)
        for step in range(1, plan.size):
            coming, arrived = _send_keys(key, value, plan, step + 1), coming.wait()
            block = plan.blocks[step]
            if block is not None and arrived is not None:
                rows = block.rows
                part = attention(query[rows], arrived[0], arrived[1], block.queries, block.keys)
                wide[rows], lse[:, rows] = merge(wide[rows], lse[:, rows], *part)
        out = wide.to(query.dtype)
        ctx.plan, ctx.attention = plan, attention
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        plan: RingPlan = ctx.plan
        attention: Attention = ctx.attention
        query, key, value, out, lse = ctx.saved_tensors
        grad = grads[0].contiguous()
        inputs = (query, key, value)
        coming, returning = _send_keys(key, value, plan, 1), _NOTHING
        totals = [t.to(lse.dtype) for t in attention.backward(grad, inputs, out, lse, plan.own, plan.own)]
        for step in range(1, plan.size):
            coming, arrived = _send_keys(key, value, plan, step + 1), coming.wait()
            block, found = plan.blocks[step], None
            if block is not None and arrived is not None:
                rows = block.rows
                parts = (query[rows], arrived[0], arrived[1])
                dq, dk, dv = attention.backward(grad[rows], parts, out[rows], lse[:, rows], block.queries, block.keys)
                totals[0][rows] += dq
                found = torch.stack([dk, dv])
            returned, returning = returning.wait(), _send_gradients(found, key, plan, step)
            _add(totals, returned, plan.sent[step - 1])
        _add(totals, returning.wait(), plan.sent[plan.size - 1])
        return (*(total.to(t.dtype) for total, t in zip(totals, inputs, strict=True)), None, None)


def _add(totals: list[torch.Tensor], returned: torch.Tensor | None, rows: slice | None) -> None:
    """Add what came back of the keys and values `rows` that were sent."""
    if returned is not None and rows is not None:
        totals[1][rows] += returned[0]
        totals[2][rows] += returned[1]


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


_NOTHING = _Coming((), None, None)


def _send_keys(key: torch.Tensor, value: torch.Tensor, plan: RingPlan, step: int) -> _Coming:
    """Start step `step`'s exchange: own keys and values [2, k, A, h] to rank + step, those of rank - step to here."""
    if step >= plan.size:
        return _NOTHING
    rows, block = plan.sent[step], plan.blocks[step]
    outgoing = None if rows is None else torch.stack([key[rows], value[rows]])
    return _start(outgoing, 0 if block is None else block.num_keys, key, plan, step)


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
    return _Coming(dist.batch_isend_irecv(operations), block, outgoing) if operations else _NOTHING


def merge(
    out: torch.Tensor, lse: torch.Tensor, part: torch.Tensor, part_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two softmax averages [n, A, h] over disjoint keys, by their log-sum-exp [A, n], to the one over both.

    An average over no keys is 0 with log-sum-exp -inf, and so is that of two such.
    """
    total = torch.logaddexp(lse, part_lse)
    finite = total.masked_fill(total == -torch.inf, 0.0)
    share, part_share = ((x - finite).exp().transpose(0, 1).unsqueeze(-1) for x in (lse, part_lse))
    return out * share + part.to(out.dtype) * part_share, total


def _one_segment(num_tokens: int, device: torch.device) -> Segments:
    # made where it is: a copy from the host would wait for the device
    return Segments(torch.arange(0, num_tokens + 1, num_tokens, dtype=torch.int32, device=device), (0, num_tokens))


def _part(begin: int, end: int, run_tokens: int, index: int) -> slice:
    start = index * run_tokens
    return slice(max(begin, start) - start, min(end, start + run_tokens) - start)
