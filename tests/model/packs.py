"""Packs of random samples for tests of the model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from megavideo.types import Grid, PackedBatch


def cumulative(lengths: Sequence[int], num_segments: int) -> torch.Tensor:
    """[K+1] int32 with repeated ends for unused segments."""
    ends = list(itertools.accumulate(lengths, initial=0))
    return torch.tensor(ends + [ends[-1]] * (num_segments + 1 - len(ends)), dtype=torch.int32)


def make_pack(
    grids: Sequence[Grid],
    texts: Sequence[torch.Tensor],
    tokens: Sequence[torch.Tensor],
    timesteps: Sequence[float],
    *,
    num_tokens: int = 0,
    num_segments: int = 0,
    text_tokens: int = 0,
) -> PackedBatch:
    """A pack of the samples, padded to the given sizes where those are larger."""
    count = max(num_segments, len(grids))
    packed, text = torch.cat(list(tokens)), torch.cat(list(texts))
    unused = count - len(grids)
    pad = max(0, num_tokens - packed.shape[0])
    text_pad = max(0, text_tokens - text.shape[0])
    return PackedBatch(
        tokens=torch.cat([packed, packed.new_full((pad, packed.shape[1]), 7.0)]),
        cu_seqlens=cumulative([g.num_tokens for g in grids], count),
        grid=torch.tensor([[g.t, g.h, g.w] for g in grids] + [[0, 0, 0]] * unused),
        text=torch.cat([text, text.new_full((text_pad, text.shape[1]), 5.0)]),
        cu_seqlens_text=cumulative([t.shape[0] for t in texts], count),
        fps=torch.full((count,), 8.0),
        timestep=torch.tensor([*timesteps, *[0.0] * unused]),
        condition_mask=torch.zeros(packed.shape[0] + pad, dtype=torch.bool),
        sample_ids=tuple(f"s{i}" if i < len(grids) else "" for i in range(count)),
        visits=(0,) * count,
    )
