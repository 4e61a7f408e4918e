"""Fades to and from black: frames whose brightness falls to black, or rises from it, step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from megavideo.data.ingest.dissolves import Transition
from megavideo.data.ingest.seen import SeenFrame

_BLACK_LEVELS = 20.0  # of the brightest block
_LONGEST_SECONDS = 2.5
_FEWEST_STEPS = 3  # of a fade; fewer are a cut to or from black
_LEAST_LEVELS = 5.0  # of mean brightness at its bright end
_LEAST_SLOPE = 0.3  # of the mean slope between a frame and black: below it, the fade is over


class FadeFinder:
    """Finds fades among all frames as they are read; black frames between two fades belong to both."""

    def __init__(self) -> None:
        self._recent: deque[SeenFrame] = deque()
        self._black: SeenFrame | None = None  # the first of the black frames that were just read
        self._rising: list[SeenFrame] = []  # the last black frame, and the brighter ones after it

    @property
    def settled(self) -> int:
        """Number in the file of the first frame that may still turn out to belong to a fade."""
        return self._recent[0].index if self._recent else 0

    def add(self, seen: SeenFrame) -> list[Transition]:
        """Take the next frame; gives the fades that end with it or before it."""
        found: list[Transition] = []
        while self._recent and seen.seconds - self._recent[0].seconds > _LONGEST_SECONDS:
            self._recent.popleft()
        if is_black(seen):
            if self._black is None:
                found += self._fade_out(seen)
                self._black = seen
            self._rising = [seen]
        elif self._rising and not self._rises(seen):
            found += self._fade_in(seen.index)
        elif self._rising:
            self._rising.append(seen)
        if not self._rising and not is_black(seen):
            self._black = None
        self._recent.append(seen)
        return found

    def finished(self) -> list[Transition]:
        """A fade that goes on until the last frame."""
        return self._fade_in(self._rising[-1].index + 1) if self._rising else []

    def _fade_out(self, black: SeenFrame) -> list[Transition]:
        fading = _steps_from_black([black, *reversed(self._recent)])
        if not _is_fade(black, fading):
            return []
        return [Transition(fading[-1].index, black.index + 1)]

    def _rises(self, seen: SeenFrame) -> bool:
        return len(_steps_from_black([*self._rising, seen])) == len(self._rising)

    def _fade_in(self, end: int) -> list[Transition]:
        black, *fading = self._rising
        self._rising = []
        first = self._black or black
        if not _is_fade(black, fading):
            return []
        # The last one is as bright as the shot, or nearly so.
        return [Transition(max(first.index, self._recent[0].index), end)]


def is_black(seen: SeenFrame) -> bool:
    """True for a frame no block of which is brighter than black."""
    return float(seen.blocks.max()) < _BLACK_LEVELS


def _steps_from_black(frames: Iterable[SeenFrame]) -> list[SeenFrame]:
    """Of a black frame and others, in the order of their distance from it, those that grow brighter without a stop."""
    black, *others = frames
    base = before = float(black.blocks.mean())
    grown: list[SeenFrame] = []
    for steps, seen in enumerate(others):
        level = float(seen.blocks.mean())
        slope = (before - base) / steps if steps else 0.0
        if level - before <= max(_LEAST_SLOPE * slope, 0.0):
            break
        grown.append(seen)
        before = level
    return grown


def _is_fade(black: SeenFrame, fading: list[SeenFrame]) -> bool:
    if len(fading) < _FEWEST_STEPS:
        return False
    levels = float(fading[-1].blocks.mean()) - float(black.blocks.mean())
    steepest = max(abs(float(b.blocks.mean()) - float(a.blocks.mean())) for a, b in zip([black, *fading], fading))
    return levels >= _LEAST_LEVELS and steepest <= levels / 2
