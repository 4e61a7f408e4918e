"""Clips at another rate than their own: of each moment the frame that is nearest to it, by the frames' real times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from megavideo.border.fields import Count
from megavideo.data.clips.frame import Frame
from megavideo.data.clips.resize import FrameWindow

_SLACK_SECONDS = 1e-6  # of two frames that are equally near the earlier one is taken
_SLACK_RATE = _SLACK_FRAMES = 0.01  # average rates are rounded


@dataclass(frozen=True)
class FrameUse:
    """What a sample shows of a clip of `total` frames: `used` different ones, and `doubled` times one once more.

    `skipped` of the others lie between those that are used; the rest comes before the first or after the last.
    """

    total: Count
    used: Count
    skipped: Count = 0
    doubled: Count = 0

    @staticmethod
    def of(total: int, numbers: list[int]) -> FrameUse:
        """That of a sample whose frames are these of the clip, in order."""
        used = len(set(numbers))
        return FrameUse(total, used, numbers[-1] - numbers[0] + 1 - used, len(numbers) - used)


@dataclass(frozen=True)
class Resampling:
    """The rate in frames a second that clips are brought to, and the largest share of a sample that repeats frames."""

    fps: float
    max_doubled: float

    def is_too_slow(self, rate: float) -> bool:
        """True for clips that at an average of `rate` frames a second have more repeats."""
        return rate < (1.0 - self.max_doubled) * self.fps * (1.0 - _SLACK_RATE)

    def repeats_too_much(self, use: FrameUse) -> bool:
        """True for a sample that has more repeats, as the rate of a clip may vary."""
        return use.doubled > self.max_doubled * (use.used + use.doubled) + 1


def num_frames_at(frames: int, rate: float, fps: float) -> int:
    """How many frames a clip of `frames` at an average of `rate` a second has at `fps`: none after its last one."""
    return 1 + int((frames - 1) / rate * fps + _SLACK_FRAMES)


def at_rate(frames: Iterable[Frame], fps: float, window: FrameWindow) -> Iterator[tuple[int, Frame]]:
    """The frames of a window of a clip at `fps`, each with its number in the clip; no more are read than it needs.

    Frame k of the clip at `fps` is the one nearest to k / fps seconds after the first, of two equally near ones the
    earlier. Steps of the clock that lead back take no time.
    """
    due, end = window.start, window.start + window.count
    clock, before = 0.0, None
    for number, frame in enumerate(frames):
        if before is not None:
            step = max(0.0, frame.seconds - before[1].seconds)
            while due < end and due / fps <= clock + step / 2 + _SLACK_SECONDS:
                yield before
                due += 1
            clock += step
        if due == end:
            return
        before = number, frame
    if before is not None:
        for _ in range(due, end):
            yield before
