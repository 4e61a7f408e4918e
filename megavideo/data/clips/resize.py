"""Geometry of a training clip: how large, how long, and which part of the source.

A clip keeps its own aspect ratio as far as the grid of latent patches allows, is never enlarged, and the little that
the grid cuts off is cut evenly from two sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from megavideo.errors import DataError

# Of a clip at least this share of its picture must survive the fit to the grid.
_SMALLEST_KEPT_SHARE = 0.5


@dataclass(frozen=True)
class FrameSize:
    """A target size in pixels, and the box of the source (left, top, right, bottom) that fills it."""

    height: int
    width: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class FrameWindow:
    """A run of `count` frames that begins at frame `start` of the clip."""

    start: int
    count: int


def fit_size(width: int, height: int, pixel_aspect: float, area: int, multiple: tuple[int, int]) -> FrameSize:
    """The size at which a clip is encoded.

    `pixel_aspect` is the width of a source pixel over its height; the target's pixels are square. The area is at most
    `area` and the sides divide by `multiple` (height, width). Among the neighbouring legal sizes the one that keeps
    most of the picture, then most of the area, is taken. Raises DataError with the reason where no size fits.
    """
    square_width, square_height = _square(width, height, pixel_aspect)
    scale = min(1.0, math.sqrt(area / (square_width * square_height)))
    aspect = square_width / square_height
    best: tuple[float, int, int] | None = None
    for target_height in _neighbours(square_height * scale, multiple[0], square_height):
        for target_width in _neighbours(square_width * scale, multiple[1], square_width):
            if target_height * target_width > area:
                continue
            ratio = target_width / target_height / aspect
            kept = min(ratio, 1.0 / ratio)
            score = kept * kept * target_height * target_width
            if kept >= _SMALLEST_KEPT_SHARE and (best is None or score > best[0]):
                best = (score, target_height, target_width)
    if best is None:
        raise DataError(
            f"{width}x{height} pixels at an area of {area} give no size whose height divides by {multiple[0]} "
            f"and width by {multiple[1]} without enlarging it or losing half of the picture"
        )
    _, target_height, target_width = best
    return filling(width, height, pixel_aspect, (target_height, target_width))


def filling(width: int, height: int, pixel_aspect: float, target: tuple[int, int]) -> FrameSize:
    """The size `target` (height, width) in square pixels, filled by the middle of a source of this size."""
    target_height, target_width = target
    square_width, square_height = _square(width, height, pixel_aspect)
    ratio = target_width / target_height / (square_width / square_height)
    crop_width, crop_height = width * min(1.0, ratio), height * min(1.0, 1.0 / ratio)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return FrameSize(target_height, target_width, (left, top, left + crop_width, top + crop_height))


def fit_window(frames: int, max_frames: int, time_ratio: int, patch_frames: int) -> FrameWindow:
    """The window of frames centred in a clip of `frames`.

    Its length is 1 + time_ratio * n, at most `max_frames`, and gives latent frames (1 + n) that divide by
    `patch_frames`. Raises DataError with the reason where the clip is too short for that.
    """
    latent_frames = (1 + (min(frames, max_frames) - 1) // time_ratio) // patch_frames * patch_frames
    if latent_frames < 1:
        needed = 1 + (patch_frames - 1) * time_ratio
        raise DataError(f"{min(frames, max_frames)} frames are too few: at least {needed} are needed")
    count = 1 + (latent_frames - 1) * time_ratio
    return FrameWindow((frames - count) // 2, count)


def resize_frames(frames: Iterable[np.ndarray], size: FrameSize) -> np.ndarray:
    """Crop and scale frames, uint8 [H, W, 3] each, to one array uint8 [T, height, width, 3], one frame at a time."""
    resized = []
    for frame in frames:
        whole = size.box == (0.0, 0.0, float(frame.shape[1]), float(frame.shape[0]))
        if whole and frame.shape[:2] == (size.height, size.width):
            resized.append(frame)
            continue
        image = Image.fromarray(frame).resize((size.width, size.height), Image.Resampling.BICUBIC, box=size.box)
        resized.append(np.asarray(image))
    return np.stack(resized)


def _square(width: int, height: int, pixel_aspect: float) -> tuple[float, float]:
    """Width and height in square pixels without enlarging: the longer side of a pixel is shrunk."""
    return width * min(1.0, pixel_aspect), height * min(1.0, 1.0 / pixel_aspect)


def _neighbours(length: float, multiple: int, longest: float) -> list[int]:
    below = int(length / multiple + 1e-9) * multiple
    return [side for side in (below, below + multiple) if 0 < side <= longest + 1e-6]
