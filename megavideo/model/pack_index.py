"""Per-token indices that follow from a pack's lengths and grids; rebuilt wherever they are needed, never sent."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megavideo.model.attention import Segments
from megavideo.types import PackedBatch


@dataclass(frozen=True)
class PackIndex:
    """Indices of one pack.

    segment [N]: the token's segment (the last one for padding); position [N, 3]: its place (t, y, x) in the segment's
    grid; place [N, 3]: the same in 0..1, relative to the grid; row [N]: its row of the conditioning table, `segment`,
    or `K + segment` where the token is given (clean); `video` and `text` delimit the segments of the two packed axes.
    """

    segment: torch.Tensor
    position: torch.Tensor
    place: torch.Tensor
    row: torch.Tensor
    video: Segments
    text: Segments

    @classmethod
    def of(cls, batch: PackedBatch) -> PackIndex:
        """Indices of `batch`, on its device, without waiting for it."""
        num_tokens, num_segments = batch.tokens.shape[0], batch.grid.shape[0]
        token = torch.arange(num_tokens, device=batch.tokens.device)
        ends = batch.cu_seqlens[1:].to(torch.int64)
        segment = torch.searchsorted(ends, token, right=True).clamp_(max=num_segments - 1)
        offset = token - batch.cu_seqlens.to(torch.int64)[segment]
        grid = batch.grid[segment].clamp(min=1)
        _, height, width = grid.unbind(1)
        area = height * width
        position = torch.stack([offset // area, offset % area // width, offset % width], dim=1)
        row = segment + num_segments * batch.condition_mask.to(torch.int64)
        return cls(
            segment=segment,
            position=position,
            place=position / (grid - 1).clamp(min=1),
            row=row,
            video=Segments.of(batch.cu_seqlens, num_tokens),
            text=Segments.of(batch.cu_seqlens_text, batch.text.shape[0]),
        )
