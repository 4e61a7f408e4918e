"""Ulysses: an all-to-all turns a run of tokens with all heads into all tokens with some heads, and back.

Jacobs et al. 2023, DeepSpeed-Ulysses. Shape legend: P ranks of the group, n tokens and A heads of a rank, h head width.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from megavideo.parallel.layers.collectives import exchange


def heads_for_tokens(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """[n, A, h] -> [P * n, A / P, h]: tokens of all ranks, in the order of ranks, for this rank's heads."""
    ranks = group.size()
    if ranks == 1:
        return x
    received = exchange(x.unflatten(1, (ranks, -1)).transpose(0, 1), group)
    return received.flatten(0, 1)


def tokens_for_heads(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """[P * n, A / P, h] -> [n, A, h]: the way back."""
    ranks = group.size()
    if ranks == 1:
        return x
    received = exchange(x.unflatten(0, (ranks, -1)), group)
    return received.transpose(0, 1).flatten(1, 2)
