"""What a score is: a name and a function from downscaled frames to one number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

LONGEST_SIDE = 256  # pixels of the frames that scores see
FRAMES_PER_SECOND = 8.0  # at most


@dataclass(frozen=True)
class ClipView:
    """What scores may know of a clip beside its frames.

    `seconds` is the time of each frame given to the score; `fps`, `width` and `height` are of the clip itself, upright
    and without letterbox.
    """

    seconds: tuple[float, ...]
    fps: float
    width: int
    height: int
    is_image: bool


class Score(Protocol):
    """One measure of a clip."""

    name: str
    for_images: bool

    def score(self, frames: np.ndarray, clip: ClipView) -> float:
        """The value for `frames` uint8 [T, h, w, 3], at most eight a second, the longer side at most 256 pixels."""
        ...


def luma(frames: np.ndarray) -> np.ndarray:
    """Brightness (BT.601) of uint8 [..., 3] as float32 [...], 0..255."""
    return frames.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def spread_out(frames: np.ndarray, most: int) -> np.ndarray:
    """At most `most` frames of [T, ...], evenly spaced."""
    if len(frames) <= most:
        return frames
    return frames[np.linspace(0, len(frames) - 1, most).round().astype(int)]
