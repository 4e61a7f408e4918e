"""A simple stand-in for taste: colour, contrast and detail. A learned score can take its place as an own one."""

from __future__ import annotations

import math

import numpy as np

from megavideo.data.ingest.filters.score import ClipView, luma, spread_out
from megavideo.data.ingest.filters.sharpness import detail

_MOST_FRAMES = 8
# Values that count as full: "extremely colourful" in the paper, half of what black beside white has, fine texture.
_FULL_COLOUR, _FULL_CONTRAST, _FULL_DETAIL = 109.0, 64.0, 40.0


class Aesthetic:
    """Mean of three parts, each 0..1: colourfulness, contrast of brightness, and detail.

    Colourfulness is that of Hasler and Suesstrunk (2003): sigma + 0.3 mu of the red-green and yellow-blue opponents.
    """

    name: str = "aesthetic"
    for_images: bool = True

    def score(self, frames: np.ndarray, clip: ClipView) -> float:
        """The mean of the parts over frames, 0..1."""
        del clip
        return float(np.mean([_of_picture(frame) for frame in spread_out(frames, _MOST_FRAMES)]))


def colourfulness(picture: np.ndarray) -> float:
    """Hasler and Suesstrunk's measure of uint8 [h, w, 3]: 0 for grey, 109 for extremely colourful."""
    red, green, blue = np.moveaxis(picture.astype(np.float32), -1, 0)
    opponents = (red - green, (red + green) / 2 - blue)
    sigma = math.hypot(*(float(values.std()) for values in opponents))
    mu = math.hypot(*(float(values.mean()) for values in opponents))
    return sigma + 0.3 * mu


def _of_picture(picture: np.ndarray) -> float:
    brightness = luma(picture)
    parts = (
        colourfulness(picture) / _FULL_COLOUR,
        float(brightness.std()) / _FULL_CONTRAST,
        detail(brightness) / _FULL_DETAIL,
    )
    return float(np.mean([min(1.0, part) for part in parts]))
