"""Per-token indices that follow from a pack's lengths and grids; rebuilt wherever they are needed, never sent."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megavideo.model.attention.segments import Segments
from megavideo.types import PackedBatch


@dataclass(frozen=True)
class PackBounds:
    """Where the segments of a pack's video and text tokens begin and end, on the host.

    `image_rows` are those of each segment's image embedding, zero in models without one.
    """

    video: tuple[int, ...]
    text: tuple[int, ...]
    image_rows: int = 0

    @classmethod
    def of(cls, batch: PackedBatch) -> PackBounds:
        """Bounds of `batch`."""
        return cls(batch.bounds, batch.text_bounds, 0 if batch.image is None else batch.image.shape[1])


@dataclass(frozen=True)
class PackFacts:
    """What a pack's indices follow from: small tensors, without gradient, that pipeline stages hand on.

    cu_seqlens [K+1]; cu_seqlens_text [K+1]; grid [K, 3]; given [N], uint8, set where a token is given (clean).
    `bounds` is what of it is on the host, which each stage knows by itself.
    """

    cu_seqlens: torch.Tensor
    cu_seqlens_text: torch.Tensor
    grid: torch.Tensor
    given: torch.Tensor
    bounds: PackBounds

    @classmethod
    def of(cls, batch: PackedBatch) -> PackFacts:
        """Facts of `batch`."""
        given = batch.condition_mask.to(torch.uint8)
        return cls(batch.cu_seqlens, batch.cu_seqlens_text, batch.grid, given, PackBounds.of(batch))

    @property
    def video(self) -> Segments:
        """The segments of the video tokens."""
        return Segments(self.cu_seqlens, self.bounds.video)

    @property
    def text(self) -> Segments:
        """The segments of the text tokens."""
        return Segments(self.cu_seqlens_text, self.bounds.text)

    @property
    def image(self) -> Segments:
        """The segments of the rows of image embeddings, equally many in each, used or not."""
        rows, count = self.bounds.image_rows, self.grid.shape[0]
        # made where it is: a copy from the host would wait for the device
        ends = torch.arange(count + 1, dtype=torch.int32, device=self.grid.device) * rows
        return Segments(ends, tuple(range(0, (count + 1) * rows, rows)))


@dataclass(frozen=True)
class PackIndex:
    """Indices of one pack.

    segment [N]: the token's segment (the last one for padding); position [N, 3]: its place (t, y, x) in the segment's
    grid; place [N, 3]: the same in 0..1, relative to the grid; row [N]: its row of the conditioning table, `segment`,
    or `K + segment` where the token is given (clean).
    """

    segment: torch.Tensor
    position: torch.Tensor
    place: torch.Tensor
    row: torch.Tensor

    @classmethod
    def of(cls, facts: PackFacts) -> PackIndex:
        """Indices on the facts' device, without waiting for it."""
        num_tokens, num_segments = facts.given.shape[0], facts.grid.shape[0]
        token = torch.arange(num_tokens, device=facts.given.device)
        ends = facts.cu_seqlens[1:].to(torch.int64)
        segment = torch.searchsorted(ends, token, right=True).clamp_(max=num_segments - 1)
        offset = token - facts.cu_seqlens.to(torch.int64)[segment]
        grid = facts.grid[segment].clamp(min=1)
        _, height, width = grid.unbind(1)
        area = height * width
        position = torch.stack([offset // area, offset % area // width, offset % width], dim=1)
        row = segment + num_segments * facts.given.to(torch.int64)
        return cls(
            segment=segment,
            position=position,
            place=position / (grid - 1).clamp(min=1),
            row=row,
        )
