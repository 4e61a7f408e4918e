"""Where one shot of a video ends and the next begins: cuts, dissolves and fades, and holes in time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np

from megavideo.data.ingest.dissolves import DissolveFinder, Transition
from megavideo.data.ingest.fades import FadeFinder, is_black
from megavideo.data.ingest.seen import SeenFrame

_WINDOW = 2  # frames before and after, with whose change a frame's change is compared
# A frame repeats the one before it where no block's brightness changes by more levels than these, or than this share of
# the largest change in the last moments. One that was shown for longer than a hold is a still picture.
_REPEAT_LEVELS = 3.0
_REPEAT_SHARE = 0.12
_RECENT_SECONDS = 0.35
_HOLD_SECONDS = 0.3
# Where a cut was found so near to the end of a transition, it is the end.
_NEAR_FRAMES = 2
# A step of the clock is a hole where it is longer than the setting, of which this is the default, and than so many of
# those before it.
HOLE_SECONDS = 0.5
_HOLE_STEPS = 4.0
_STEPS_KEPT = 16


@dataclass(frozen=True)
class CutRule:
    """What ends a shot.

    A cut: a frame's change is `change` or more, and `ratio` times that around it. A dissolve or fade, with
    `transitions`. A step of the clock of more than `hole_seconds`.
    """

    ratio: float
    change: float
    transitions: bool = True
    hole_seconds: float | None = None


@dataclass(frozen=True)
class Mark:
    """Which run of frames a frame belongs to: their number, and whether they are a transition between two shots."""

    run: int
    is_transition: bool


def mark_shots(frames: Iterable[SeenFrame], rule: CutRule | None) -> Iterator[tuple[SeenFrame, Mark]]:
    """Each frame with its run; without a rule they are all one. Frames given out lag some seconds behind."""
    if rule is None:
        yield from ((seen, Mark(0, False)) for seen in frames)
        return
    run = 0
    for part in _between_holes(frames, rule.hole_seconds):
        last = None
        for seen, mark in _marked(part, rule):
            last = mark.run
            yield seen, Mark(run + mark.run, mark.is_transition)
        run += 0 if last is None else last + 1


class _Cuts:
    """Finds cuts among frames that differ from each other, with PySceneDetect's AdaptiveDetector."""

    def __init__(self, rule: CutRule) -> None:
        from scenedetect.detectors import AdaptiveDetector

        # A short shot is a shot: joining it to its neighbour would leave a cut in a clip.
        self._detector = AdaptiveDetector(
            adaptive_threshold=rule.ratio, min_content_val=rule.change, min_scene_len=1, window_width=_WINDOW
        )
        self._numbers: deque[int] = deque(maxlen=_WINDOW + 1)
        self._count = 0

    @property
    def settled(self) -> int:
        """Number of the first frame that may still turn out to begin a shot."""
        return self._numbers[0] if self._numbers else 0

    def add(self, seen: SeenFrame) -> list[int]:
        """Take the next frame; gives the numbers of frames that begin a shot."""
        from scenedetect import FrameTimecode

        self._numbers.append(seen.index)
        # The detector only counts frames; the rate given here has no effect.
        time = FrameTimecode(self._count, fps=25.0)
        self._count += 1
        found = self._detector.process_frame(time, np.ascontiguousarray(seen.small[..., ::-1]))
        # The change of the very first frame is unknown and counts as none: a cut so early would be a guess.
        return [self._numbers[0] for cut in found if cut.frame_num > _WINDOW]


class _Distinct:
    """Tells which frames show something new.

    A video of a low rate in a file of a higher one repeats frames. Beside them, each of its steps looks like a cut.
    """

    def __init__(self) -> None:
        self._last: SeenFrame | None = None
        self._changes: deque[tuple[float, float]] = deque()

    def is_new(self, seen: SeenFrame) -> bool:
        """False for a frame that repeats the last new one, for as long as it may be a held frame."""
        if self._last is not None:
            change = float(np.abs(seen.blocks - self._last.blocks).max())
            while self._changes and seen.seconds - self._changes[0][0] > _RECENT_SECONDS:
                self._changes.popleft()
            limit = max([_REPEAT_LEVELS, *(_REPEAT_SHARE * recent for _, recent in self._changes)])
            if change < limit and seen.seconds - self._last.seconds < _HOLD_SECONDS:
                return False
            self._changes.append((seen.seconds, change))
        self._last = seen
        return True


def _marked(frames: Iterable[SeenFrame], rule: CutRule) -> Iterator[tuple[SeenFrame, Mark]]:
    """Frames of one run of the clock with their runs, from 0."""
    distinct, cuts = _Distinct(), _Cuts(rule)
    transitions = _Transitions() if rule.transitions else None
    numbering = _Numbering()
    waiting: deque[SeenFrame] = deque()
    for seen in frames:
        waiting.append(seen)
        is_new = distinct.is_new(seen)
        if is_new:
            numbering.add_cuts(cuts.add(seen))
        settled = cuts.settled
        if transitions is not None:
            numbering.add_transitions(transitions.add(seen, is_new), waiting)
            settled = min(settled, transitions.settled)
        while waiting and waiting[0].index < settled - _NEAR_FRAMES:
            yield numbering.marked(waiting.popleft())
    numbering.add_transitions(transitions.finished() if transitions else [], waiting)
    while waiting:
        yield numbering.marked(waiting.popleft())


class _Transitions:
    """Dissolves and fades."""

    def __init__(self) -> None:
        self._dissolves, self._fades = DissolveFinder(), FadeFinder()

    @property
    def settled(self) -> int:
        """Number of the first frame that may still turn out to belong to one."""
        return min(self._dissolves.settled, self._fades.settled)

    def add(self, seen: SeenFrame, is_new: bool) -> list[Transition]:
        """Take the next frame; gives those that are known now."""
        if not is_new:
            self._dissolves.hold(seen)
        return [*(self._dissolves.add(seen) if is_new else ()), *self._fades.add(seen)]

    def finished(self) -> list[Transition]:
        """Those that are left at the end."""
        return [*self._dissolves.finished(), *self._fades.finished()]


class _Numbering:
    """Cuts and transitions as they become known, and frames in order, which they divide into runs."""

    def __init__(self) -> None:
        self._cuts: set[int] = set()
        self._transitions: list[Transition] = []
        self._mark: Mark | None = None

    def add_cuts(self, numbers: list[int]) -> None:
        """Note frames that begin a shot."""
        self._cuts.update(numbers)

    def add_transitions(self, found: list[Transition], waiting: deque[SeenFrame]) -> None:
        """Note transitions among the frames that wait, with cuts close to them and black frames before them."""
        for one in found:
            begin = min([cut for cut in self._cuts if one.begin - _NEAR_FRAMES <= cut < one.begin], default=one.begin)
            end = max([cut for cut in self._cuts if one.end < cut <= one.end + _NEAR_FRAMES], default=one.end)
            for seen in reversed(waiting):
                if seen.index < begin and not is_black(seen):
                    break
                begin = min(begin, seen.index)
            self._cuts -= set(range(begin, end + 1))
            self._transitions.append(Transition(begin, end))

    def marked(self, seen: SeenFrame) -> tuple[SeenFrame, Mark]:
        """The next frame with its run."""
        self._transitions = [one for one in self._transitions if one.end > seen.index]
        inside = any(one.begin <= seen.index for one in self._transitions)
        before = self._mark
        if before is None:
            self._mark = Mark(0, inside)
        else:
            # Black frames that follow a fade belong to it.
            inside = inside or (before.is_transition and is_black(seen))
            begins = inside != before.is_transition or (seen.index in self._cuts and not inside)
            self._mark = Mark(before.run + begins, inside)
        self._cuts.discard(seen.index)
        return seen, self._mark


def _between_holes(frames: Iterable[SeenFrame], hole_seconds: float | None) -> Iterator[Iterator[SeenFrame]]:
    """Frames in runs, between which the clock has a hole or begins anew; each is to be taken whole."""
    source = iter(frames)
    ahead = deque(islice(source, 3))
    steps: deque[float] = deque(maxlen=_STEPS_KEPT)

    def run() -> Iterator[SeenFrame]:
        while ahead:
            times = [seen.seconds for seen in ahead]
            seen = ahead.popleft()
            ahead.extend(islice(source, 1))
            yield seen
            if hole_seconds is not None and _is_hole(times, steps, hole_seconds):
                return

    while ahead:
        yield run()


def num_holes(times: Sequence[float], hole_seconds: float = HOLE_SECONDS) -> int:
    """How many steps of a clock are holes, whether or not shots end there."""
    steps: deque[float] = deque(maxlen=_STEPS_KEPT)
    return sum(_is_hole(list(times[place : place + 3]), steps, hole_seconds) for place in range(len(times)))


def _is_hole(times: list[float], steps: deque[float], hole_seconds: float) -> bool:
    """True where the first step of `times` is a hole beside the `steps` before it, to which any other is added.

    Where there are none before it, it is compared with the step that follows.
    """
    if len(times) < 2:
        return False
    step = times[1] - times[0]
    others = [*steps] or [abs(later - earlier) for earlier, later in pairwise(times[1:])]
    if step < -hole_seconds or (others and step > hole_seconds and step > _HOLE_STEPS * float(np.median(others))):
        return True
    if step > 0:
        steps.append(step)
    return False
