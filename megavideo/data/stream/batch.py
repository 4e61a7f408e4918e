"""Samples to one packed batch of static shape.

Shape legend: N video tokens, M text tokens, K segments, P patch width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from megavideo.data.patches import patchify
from megavideo.data.plan.packing import PackLimits
from megavideo.data.stream.shards import LatentSample
from megavideo.errors import DataError
from megavideo.types import PackedBatch, PackSegment


def assemble(
    segments: Sequence[PackSegment],
    samples: Sequence[LatentSample],
    patch: tuple[int, int, int],
    limits: PackLimits,
) -> PackedBatch:
    """A pack of clean tokens, float32, with timestep zero and nothing given.

    N, M and K are the limits; what the samples leave over is zero. Raises DataError where a sample is not as the
    manifest says.
    """
    tokens = [patchify(sample.latent, patch) for sample in samples]
    for segment, rows in zip(segments, tokens, strict=True):
        if rows.shape[0] != segment.grid.num_tokens:
            raise DataError(
                f"sample {segment.sample_id}: {rows.shape[0]} tokens in the shard, {segment.grid.num_tokens} in the "
                "manifest. Remedy: encode again with overwrite=true"
            )
    texts = [sample.text for sample in samples]
    unused = limits.segments - len(segments)
    return PackedBatch(
        tokens=_padded(tokens, limits.tokens),
        cu_seqlens=_cumulative([rows.shape[0] for rows in tokens], limits.segments),
        grid=torch.tensor([[s.grid.t, s.grid.h, s.grid.w] for s in segments] + [[0, 0, 0]] * unused),
        text=_padded(texts, limits.text_tokens),
        cu_seqlens_text=_cumulative([text.shape[0] for text in texts], limits.segments),
        fps=torch.tensor([sample.fps for sample in samples] + [0.0] * unused),
        timestep=torch.zeros(limits.segments),
        condition_mask=torch.zeros(limits.tokens, dtype=torch.bool),
        sample_ids=tuple(s.sample_id for s in segments) + ("",) * unused,
        visits=tuple(s.visit for s in segments) + (0,) * unused,
    )


def _padded(parts: Sequence[torch.Tensor], length: int) -> torch.Tensor:
    out = parts[0].new_zeros(length, parts[0].shape[1])
    used = sum(part.shape[0] for part in parts)
    out[:used] = torch.cat(list(parts))
    return out


def _cumulative(lengths: Sequence[int], num_segments: int) -> torch.Tensor:
    ends = list(itertools.accumulate(lengths, initial=0))
    return torch.tensor(ends + [ends[-1]] * (num_segments + 1 - len(ends)), dtype=torch.int32)
