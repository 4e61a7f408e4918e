"""How fast a clip moves."""

from __future__ import annotations

import numpy as np

from megavideo.data.ingest.filters.score import ClipView

_MOST_PAIRS = 16
_LONGEST_SIDE = 128  # pixels; enough for a mean, and four times as fast as 256
_SMALLEST_SIDE = 16  # pixels; the flow has no meaning below


class Motion:
    """Mean length of the optical flow (Farneback 2003, as in OpenCV), in % of the diagonal a second.

    It is measured between neighbouring frames of at most 16 pairs spread over the clip.
    """

    name: str = "motion"
    for_images: bool = False

    def score(self, frames: np.ndarray, clip: ClipView) -> float:
        """The speed; 0 for a single frame and for pictures too small to tell."""
        height, width = frames.shape[1:3]
        if len(frames) < 2 or min(height, width) < _SMALLEST_SIDE:
            return 0.0
        pairs = np.unique(np.linspace(0, len(frames) - 2, min(_MOST_PAIRS, len(frames) - 1)).round().astype(int))
        speeds = []
        for index in pairs:
            seconds = clip.seconds[index + 1] - clip.seconds[index]
            if seconds > 0:
                speeds.append(100.0 * _flow(frames[index], frames[index + 1]) / seconds)
        return float(np.mean(speeds)) if speeds else 0.0


def _flow(before: np.ndarray, after: np.ndarray) -> float:
    """Mean length of the flow between two frames [h, w, 3], as a share of the diagonal."""
    import cv2

    scale = min(1.0, _LONGEST_SIDE / max(before.shape[:2]))
    size = max(1, round(before.shape[1] * scale)), max(1, round(before.shape[0] * scale))
    grey = [
        cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
        for frame in (before, after)
    ]
    # DIS would be faster; OpenCV 5.0's kills the process on some pictures of 64 x 64.
    start = np.zeros((size[1], size[0], 2), np.float32)
    flow = cv2.calcOpticalFlowFarneback(
        grey[0], grey[1], start, pyr_scale=0.5, levels=3, winsize=15, iterations=2, poly_n=5, poly_sigma=1.1, flags=0
    )
    return float(np.linalg.norm(flow, axis=-1).mean() / np.hypot(*size))
