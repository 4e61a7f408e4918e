"""What is kept of a frame while a video is read: enough for all measures, and little of it, as several seconds wait."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from megavideo.data.clips.frame import Frame, Traits
from megavideo.data.ingest.filters.score import LONGEST_SIDE, luma
from megavideo.data.ingest.letterbox import BrightPixels, bright_pixels

_BLOCK = 8
_BLOCKS_A_SIDE = 8  # at least, where the picture is small
_BARS_EVERY_SECONDS = 0.25
_BARS_CHANGE = 12.0  # levels of a block: a shot may begin here, and shows its bars


@dataclass(frozen=True)
class SeenFrame:
    """A frame with its number in the file, its picture downscaled, and measures of it.

    `small` uint8 [h, w, 3]; `blocks` float32 [rows, columns] is the mean brightness of its blocks of 8 x 8 pixels, and
    `detail` the mean square of the steps of brightness between neighbouring pixels. `digest` is `Frame.digest`.
    `bright` tells where the whole picture is not black, for some of the frames.
    """

    index: int
    seconds: float
    is_timed: bool
    traits: Traits
    digest: str
    small: np.ndarray
    blocks: np.ndarray
    detail: float
    bright: BrightPixels | None


def seen_frames(frames: Iterable[Frame], letterbox: bool) -> Iterator[SeenFrame]:
    """Number, downscale and measure frames; with `letterbox`, four a second also for their bars."""
    bars_seconds, before = -math.inf, None
    for index, frame in enumerate(frames):
        small = frame.small(LONGEST_SIDE)
        brightness = luma(small)
        blocks, bright = _blocks(brightness), None
        changes = before is None or float(np.abs(blocks - before).max()) >= _BARS_CHANGE
        if letterbox and (changes or abs(frame.seconds - bars_seconds) >= _BARS_EVERY_SECONDS):
            bright, bars_seconds = bright_pixels(frame.rgb()), frame.seconds
        before = blocks
        yield SeenFrame(
            index=index,
            seconds=frame.seconds,
            is_timed=frame.is_timed,
            traits=frame.traits,
            digest=frame.digest(),
            small=small,
            blocks=blocks,
            detail=_detail(brightness),
            bright=bright,
        )


def _blocks(brightness: np.ndarray) -> np.ndarray:
    height, width = brightness.shape
    block = max(1, min(_BLOCK, min(height, width) // _BLOCKS_A_SIDE))
    rows, columns = height // block, width // block
    return brightness[: rows * block, : columns * block].reshape(rows, block, columns, block).mean(axis=(1, 3))


def _detail(brightness: np.ndarray) -> float:
    if min(brightness.shape) < 2:
        return 0.0
    here = brightness[:-1, :-1]
    return float(np.square(brightness[1:, :-1] - here).mean() + np.square(brightness[:-1, 1:] - here).mean())
