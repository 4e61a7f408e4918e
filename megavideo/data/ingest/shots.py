"""Scene cuts: where one shot of a video ends and the next begins."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from megavideo.data.clips.media import Frame
from megavideo.data.ingest.filters.score import LONGEST_SIDE

_WINDOW = 2  # frames before and after, with whose change a frame's change is compared


@dataclass(frozen=True)
class CutRule:
    """When a frame begins a new shot: its change is `change` or more, and `ratio` times that around it."""

    ratio: float
    change: float


@dataclass(frozen=True)
class SeenFrame:
    """A frame with its number in the file and its picture downscaled, uint8 [h, w, 3]."""

    index: int
    frame: Frame
    small: np.ndarray


def seen_frames(frames: Iterable[Frame]) -> Iterator[SeenFrame]:
    """Number and downscale frames."""
    for index, frame in enumerate(frames):
        yield SeenFrame(index, frame, frame.small(LONGEST_SIDE))


def mark_shots(frames: Iterable[SeenFrame], rule: CutRule | None) -> Iterator[tuple[SeenFrame, bool]]:
    """Each frame, with True where it begins a new shot; none does without a rule.

    PySceneDetect's AdaptiveDetector decides. It looks two frames ahead, and so do the frames given out lag two behind.
    """
    if rule is None:
        yield from ((seen, False) for seen in frames)
        return
    from scenedetect import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    # A short shot is a shot: joining it to its neighbour would leave a cut in a clip.
    detector = AdaptiveDetector(
        adaptive_threshold=rule.ratio, min_content_val=rule.change, min_scene_len=1, window_width=_WINDOW
    )
    waiting: deque[SeenFrame] = deque()
    cuts: set[int] = set()
    for seen in frames:
        waiting.append(seen)
        # The detector only counts frames; the rate given here has no effect.
        time = FrameTimecode(seen.index, fps=25.0)
        cuts.update(cut.frame_num for cut in detector.process_frame(time, np.ascontiguousarray(seen.small[..., ::-1])))
        if len(waiting) > _WINDOW:
            yield _marked(waiting.popleft(), cuts)
    while waiting:
        yield _marked(waiting.popleft(), cuts)


def _marked(seen: SeenFrame, cuts: set[int]) -> tuple[SeenFrame, bool]:
    begins = seen.index in cuts
    cuts.discard(seen.index)
    # The change of the very first frame is unknown and counts as none: a cut so early would be a guess.
    return seen, begins and seen.index > _WINDOW
