"""A few frames of a clip for a model to look at: which, and how large."""

from __future__ import annotations

from megavideo.data.clips.resize import FrameSize


def frame_numbers(frames: int, count: int) -> tuple[int, ...]:
    """The middle frames of `count` equal parts of a clip of `frames`; all frames where there are no more."""
    count = min(count, frames)
    return tuple((2 * part + 1) * frames // (2 * count) for part in range(count))


def view_size(box: tuple[int, int, int, int], pixel_aspect: float, longest_side: int) -> FrameSize:
    """The picture in `box` (left, top, right, bottom) in square pixels, no side longer than `longest_side`.

    `pixel_aspect` is the width of a pixel over its height. Nothing is enlarged.
    """
    left, top, right, bottom = box
    width, height = (right - left) * min(1.0, pixel_aspect), (bottom - top) * min(1.0, 1.0 / pixel_aspect)
    scale = min(1.0, longest_side / max(width, height))
    source = (float(left), float(top), float(right), float(bottom))
    return FrameSize(max(1, round(height * scale)), max(1, round(width * scale)), source)
