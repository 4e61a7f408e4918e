"""Bytes that one GPU sends, by kind of parallelism: the only formulas of communication.

A ring all-gather or reduce-scatter of a whole tensor of B bytes over n ranks makes each send B * (n - 1) / n, an
all-reduce twice that, an all-to-all of the B bytes that a rank holds B * (n - 1) / n (Thakur, Rabenseifner and Gropp
2005, section 4). The factor (n - 1) / n is included everywhere, so that one rank sends nothing; for many
ranks it tends to 1. Figures are whole bytes, rounded down, of forward and backward without recomputation, unless a
function says otherwise. Left out are norms of gradients and the sums of the embedders' and the head's gradients under
tensor parallel, all of a fixed size; `tensor_parallel_rest_bytes` has what is small in a layer. All of them are held to
counted bytes (decision 16).

`element_bytes` is 2 for bf16 and 4 for fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megavideo.config.layout import Layout, ulysses_degree

GATHERS_AND_SCATTERS = 15  # of a layer, 3 + 3 forward, 9 backward
ALL_REDUCES = 6  # of a layer, 3 forward, 3 backward


def _others(total: int, ranks: int) -> int:
    """The part of `total` that belongs to the other ranks."""
    return total * (ranks - 1) // ranks


def tensor_parallel_bytes(tokens: int, width: int, tp: int, element_bytes: int, *, sp: bool = True) -> int:
    """One layer over `tokens` attended tokens (of a pack of s: s / cp) of the model's `width`.

    With sequence parallel 3 all-gathers and 3 reduce-scatters forward (self-attention, query of the cross-attention,
    feed-forward), and 9 collectives backward: each of the six has its opposite, and each input of a column layer is
    gathered once more for the gradient of the weight (Korthikanti et al. 2022, section 4.2.2). Without it an
    all-reduce after each of the three forward and one backward (Shoeybi et al. 2019, section 3).
    """
    tensor = tokens * width * element_bytes
    return (GATHERS_AND_SCATTERS if sp else 2 * ALL_REDUCES) * _others(tensor, tp)


def tensor_parallel_rest_bytes(
    tokens: int, text_tokens: int, width: int, tp: int, element_bytes: int, *, sp: bool = True
) -> int:
    """What `tensor_parallel_bytes` leaves out of a layer: all-reduces of a few numbers a token, or of a fixed size.

    The four RMS norms over a width that is split sum one float32 a token, three of video and one of the `text_tokens`
    that a rank makes keys of, both ways.
    Sequence parallel sums the gradients of what each rank applies to its own tokens: three biases, the two vectors of
    the cross-attention's norm, and the block's modulation table of six (`adaln`).
    """
    norms = 2 * 4 * (3 * tokens + text_tokens)
    vectors = 11 * width * element_bytes if sp else 0
    return 2 * _others(norms + vectors, tp)


def ring_bytes(tokens: int, width: int, ranks: int, element_bytes: int) -> int:
    """Ring attention of one layer over `tokens`, those of all `ranks` of the ring together.

    `width` is that of the heads which a rank attends with, under tensor parallel the model's / tp. Keys and values
    pass every other rank forward, and keys, values and their gradients backward: 6 tensors (Liu et al. 2023).
    It is that of a single segment, and an upper bound for packs (`packed_ring_bytes`).
    """
    return _others(6 * tokens * width * element_bytes, ranks)


def packed_ring_bytes(segments: Sequence[int], tokens: int, width: int, ranks: int, element_bytes: int) -> int:
    """Ring attention of one layer over a pack of `tokens` with `segments` (their lengths), by its busiest rank.

    Each rank holds an equal run of the pack, and two ranks exchange only the tokens of a segment that both hold part
    of: a rank sends its keys and values of that segment twice, and the gradients of the other's once.
    """
    run = tokens // ranks
    sent = [0] * ranks
    end = 0
    for length in segments:
        begin, end = end, end + length
        holders = range(begin // run, -(-end // run))
        for rank in holders:
            own = min(end, (rank + 1) * run) - max(begin, rank * run)
            sent[rank] += 4 * own * (len(holders) - 1) + 2 * (length - own)
    return max(sent) * width * element_bytes


def ulysses_bytes(tokens: int, width: int, ranks: int, element_bytes: int) -> int:
    """Ulysses attention of one layer over `tokens`, those of all `ranks` that exchange heads together.

    `width` as in `ring_bytes`. Query, key, value and output change hands forward, their gradients backward: 8
    all-to-alls of a rank's share (Jacobs et al. 2023, section 3.2).
    """
    return _others(8 * (tokens // ranks) * width * element_bytes, ranks)


def text_bytes(text_tokens: int, width: int, cp: int, element_bytes: int) -> int:
    """Cross-attention of one layer to the `text_tokens` of a pack, whose keys and values are made in `cp` equal shares.

    `width` as in `ring_bytes`. Both are gathered forward and their gradients scattered backward: 4 tensors.
    """
    share = -(-text_tokens // cp)
    return _others(4 * cp * share * width * element_bytes, cp)


def zero_bytes(
    parameters: int, stage: int, element_bytes: int, dp: int, micro_steps: int = 1, *, reduce_scatter: bool = True
) -> int:
    """One step of ZeRO over `dp` ranks, the engine's data axis (dp x cp of a layout).

    `parameters` are those of one rank before ZeRO divides them (its tp and pp share). Rajbhandari et al. 2020,
    section 7: stage 0 all-reduces gradients once a step; stage 1 scatters them and gathers the updated parameters, once
    a step; stage 2 scatters them at every micro-step, as it keeps no whole ones; stage 3 gathers parameters for forward
    and for backward and scatters gradients at every micro-step. It is an upper bound for models of fewer than 1e9
    parameters, which DeepSpeed keeps from forward to backward (`stage3_max_live_parameters`). With `reduce_scatter`
    False stages 1 and 2 all-reduce gradients and drop what is not theirs: DeepSpeed's default
    (`use_multi_rank_bucket_allreduce`).
    """
    once = _others(parameters * element_bytes, dp)
    if stage == 0:
        return 2 * once
    if stage == 3:
        return 3 * micro_steps * once
    reductions = micro_steps if stage == 2 else 1
    return (reductions * (1 if reduce_scatter else 2) + 1) * once


def pipeline_bytes(tokens: int, width: int, element_bytes: int, *, extra_rows: int = 0) -> int:
    """One micro-batch over one boundary of stages, one way: activations forward, or as much of gradients backward.

    `tokens` are a rank's own (of a pack of s: s / (cp * tp) with sequence parallel, else s / cp). `extra_rows` are
    rows of `width` that travel beside them, as text and conditioning.
    """
    return (tokens + extra_rows) * width * element_bytes


@dataclass(frozen=True)
class LayerBytes:
    """Bytes that one GPU sends for one layer and one pack, apart by axis, as axes may run over different links."""

    tensor: int
    ulysses: int
    ring: int
    text: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.tensor + self.ulysses + self.ring + self.text


def layer_bytes(
    layout: Layout, tokens: int, text_tokens: int, width: int, heads: int, element_bytes: int
) -> LayerBytes:
    """One layer of a model of `width` and `heads` over a pack of `tokens` and `text_tokens` under a layout.

    In 2d context parallel a Ulysses group holds the tokens of one place of the ring, and each of its ranks then runs
    the ring with its own share of the heads.
    """
    ulysses = ulysses_degree(layout, heads)
    ring = layout.cp // ulysses
    own_width = width // layout.tp
    return LayerBytes(
        tensor=tensor_parallel_bytes(tokens // layout.cp, width, layout.tp, element_bytes, sp=layout.sp),
        ulysses=ulysses_bytes(tokens // ring, own_width, ulysses, element_bytes),
        ring=ring_bytes(tokens, own_width // ulysses, ring, element_bytes),
        text=text_bytes(text_tokens, own_width, layout.cp, element_bytes),
    )
