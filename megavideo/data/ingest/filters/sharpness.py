"""How much fine detail a clip shows: low where it is blurred or empty."""

from __future__ import annotations

import numpy as np

from megavideo.data.ingest.filters.score import ClipView, luma, spread_out

_MOST_FRAMES = 8


class Sharpness:
    """Standard deviation of the Laplacian (Pech-Pacheco et al. 2000) of the brightness, mean over frames.

    Frames are 256 pixels long at most, so that it tells blur which shows at that size.
    """

    name: str = "sharpness"
    for_images: bool = True

    def score(self, frames: np.ndarray, clip: ClipView) -> float:
        """The deviation in levels of 255."""
        del clip
        return float(np.mean([detail(luma(frame)) for frame in spread_out(frames, _MOST_FRAMES)]))


def detail(brightness: np.ndarray) -> float:
    """Standard deviation of the four-neighbour Laplacian of [h, w]; 0 where there is no inner pixel."""
    if min(brightness.shape) < 3:
        return 0.0
    inner = brightness[1:-1, 1:-1]
    around = brightness[:-2, 1:-1] + brightness[2:, 1:-1] + brightness[1:-1, :-2] + brightness[1:-1, 2:]
    return float((around - 4 * inner).std())
