"""How much anything changes over a clip at all: low for a still picture shown as a video."""

from __future__ import annotations

import numpy as np

from megavideo.data.ingest.filters.score import ClipView, luma

_BLOCK = 8
_BLOCKS_A_SIDE = 8  # at least, where the picture is small


class Change:
    """Of the blocks of 8 x 8 pixels, the one whose mean brightness varies most over time: its range, in levels of 255.

    A mean over a block hides the noise of sensor and codec, and the largest shows a small thing that moves before a
    still background.
    """

    name: str = "change"
    for_images: bool = False

    def score(self, frames: np.ndarray, clip: ClipView) -> float:
        """The range in levels; 0 for a single frame."""
        del clip
        height, width = frames.shape[1:3]
        block = max(1, min(_BLOCK, min(height, width) // _BLOCKS_A_SIDE))
        rows, columns = height // block, width // block
        tall, wide = height // rows, width // columns
        low, high = np.full((rows, columns), np.inf), np.full((rows, columns), -np.inf)
        for frame in frames:
            blocks = luma(frame[: rows * tall, : columns * wide]).reshape(rows, tall, columns, wide).mean(axis=(1, 3))
            low, high = np.minimum(low, blocks), np.maximum(high, blocks)
        return float((high - low).max())
