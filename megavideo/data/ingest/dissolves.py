"""Dissolves: frames in which one picture changes into another by and by, and which belong to neither shot.

In a dissolve from picture A to picture B each frame M is (1 - x) A + x B, where x grows evenly from 0 to 1 while its
frames pass; a fade to or from a colour is one as well. For each pair of frames that are unlike each other, x and
what is left of M are found by least squares. Of motion most is left: neither end holds what is seen between them. And a
mixture of unlike pictures has less detail than they: (1 - x)^2 and x^2 of theirs, where in motion it stays.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from megavideo.data.ingest.seen import SeenFrame

# Pictures are compared at this size: motion shows little, and a dissolve all.
_WIDTH, _HEIGHT = 32, 18
_LONGEST_SECONDS = 2.5
_FEWEST_STEPS, _MOST_STEPS = 6, 48
_PARTS = 6  # of a dissolve, between which it is looked at
# What a dissolve is: its ends differ by so many levels of 255 (root of the mean square), by so many in this share of
# the picture, and are not alike in structure (correlation); x is this near to even, this share of the difference is
# left, and detail falls by this share of what it should. Of dissolves of 6 to 48 frames between shots of sixteen real
# clips these find nine in ten, where detail falls by 0.8 and more; in the shots, of 1,500 frames, it falls by 0.24.
_LEAST_LEVELS = 25.0
_CHANGED_LEVELS, _LEAST_CHANGED = 6.0, 0.4
_MOST_ALIKE = 0.6
_MOST_UNEVEN = 0.2
_MOST_LEFT = 0.5
_MOST_LEFT_OF_SHORT, _SHORT_STEPS = 0.4, 8
_LEAST_FALL = 0.7
_LEAST_DETAIL = 2.0  # of the ends; below it there is nothing to fall
_UNEVEN_COST = 5.0  # of two that overlap, how much more even the one that reaches less far has to be
_LEAST_VARIANCE = 4.0  # below it a picture is of one colour, and like nothing


@dataclass(frozen=True)
class Transition:
    """Frames `begin` to `end - 1` of a file, between two shots."""

    begin: int
    end: int


@dataclass(frozen=True)
class _Found:
    """A dissolve between the frames at two places of all that were added, and how good it is."""

    first: int
    last: int
    worth: float


class DissolveFinder:
    """Finds dissolves among frames as they are read. Those that repeat the one before are only told, by `hold`.

    Frames before `settled` are in none that is yet to be found.
    """

    def __init__(self) -> None:
        self._pictures = np.zeros((0, _WIDTH * _HEIGHT * 3), np.float32)
        self._products = np.zeros((0, 0))
        self._frames: deque[SeenFrame] = deque()
        self._until: deque[float] = deque()  # when each of them was shown last
        self._num_dropped = 0
        self._found: list[_Found] = []
        self._numbers: dict[int, int] = {}

    @property
    def settled(self) -> int:
        """Number in the file of the first frame that may still turn out to belong to a transition."""
        first = min([self._num_dropped, *(found.first for found in self._found)])
        return self._numbers.get(first, 0)

    def add(self, seen: SeenFrame) -> list[Transition]:
        """Take the next frame; gives the transitions that are known now."""
        while self._frames and (
            len(self._frames) > _MOST_STEPS or seen.seconds - self._frames[0].seconds > _LONGEST_SECONDS
        ):
            self._frames.popleft()
            self._until.popleft()
            self._num_dropped += 1
        self._numbers[self._num_dropped + len(self._frames)] = seen.index
        self._frames.append(seen)
        self._until.append(seen.seconds)
        self._add_picture(seen.small)
        self._search()
        return self._resolved(self._num_dropped)

    def hold(self, seen: SeenFrame) -> None:
        """Note that a frame repeats the last one."""
        self._until[-1] = seen.seconds

    def finished(self) -> list[Transition]:
        """The transitions that are left when all frames were added."""
        return self._resolved(self._num_dropped + len(self._frames))

    def _add_picture(self, small: np.ndarray) -> None:
        import cv2

        picture = cv2.resize(small, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
        kept = len(self._frames) - 1
        gone = len(self._pictures) - kept
        self._pictures = np.vstack([self._pictures[gone:], picture])
        products = np.empty((kept + 1, kept + 1))
        products[:kept, :kept] = self._products[gone:, gone:]
        products[kept] = products[:, kept] = self._pictures @ picture
        self._products = products

    def _search(self) -> None:
        """Look for dissolves that end at the last frame."""
        last = len(self._frames) - 1
        starts = np.arange(max(0, last - _MOST_STEPS), last - _FEWEST_STEPS + 1)
        if len(starts) == 0:
            return
        products, size = self._products, self._pictures.shape[1]
        squares = np.diag(products)
        apart = np.sqrt(np.maximum(squares[starts] + squares[last] - 2 * products[starts, last], 0.0) / size)
        for first in starts[(apart >= _LEAST_LEVELS) & (self._alike(starts, last) <= _MOST_ALIKE)].tolist():
            changed = np.abs(self._pictures[first] - self._pictures[last]) >= _CHANGED_LEVELS
            if changed.mean() < _LEAST_CHANGED:
                continue
            uneven, left = self._fit(first, last)
            most_left = _MOST_LEFT_OF_SHORT if last - first < _SHORT_STEPS else _MOST_LEFT
            if uneven <= _MOST_UNEVEN and left <= most_left and self._fall(first, last) >= _LEAST_FALL:
                worth = float(apart[first - starts[0]]) * (1.0 - _UNEVEN_COST * uneven)
                self._found.append(_Found(self._num_dropped + first, self._num_dropped + last, worth))

    def _alike(self, starts: np.ndarray, last: int) -> np.ndarray:
        """Correlation of each first picture with the last one, 0 where one is of a single colour; [N]."""
        size, means = self._pictures.shape[1], self._pictures.mean(axis=1, dtype=np.float64)
        variances = np.diag(self._products) / size - means**2
        together = self._products[starts, last] / size - means[starts] * means[last]
        plain = np.minimum(variances[starts], variances[last]) < _LEAST_VARIANCE
        scale = np.sqrt(np.maximum(variances[starts] * variances[last], _LEAST_VARIANCE**2))
        return np.where(plain, 0.0, together / scale)

    def _fit(self, first: int, last: int) -> tuple[float, float]:
        """How far x is from even at most, and the largest share of the difference that is left between the ends."""
        products, between = self._products, _between(first, last)
        square = products[first, first] + products[last, last] - 2 * products[first, last]
        shares = products[between, last] - products[between, first] - products[first, last] + products[first, first]
        shares = shares / square
        moved = np.diag(products)[between] + products[first, first] - 2 * products[between, first]
        left = np.sqrt(np.maximum(moved - shares**2 * square, 0.0) / square)
        return float(np.abs(shares - self._even(first, last)).max()), float(left.max())

    def _even(self, first: int, last: int) -> np.ndarray:
        """The share of the time between two frames that has passed at those between them."""
        begin, end = self._until[first], self._frames[last].seconds
        seconds = np.array([self._frames[place].seconds for place in _between(first, last).tolist()])
        return (seconds - begin) / max(end - begin, 1e-9)

    def _fall(self, first: int, last: int) -> float:
        """How far detail falls between two frames, over how far it falls in a dissolve; mean of the inner ones."""
        begin, end = self._frames[first].detail, self._frames[last].detail
        if max(begin, end) < _LEAST_DETAIL:
            return 0.0
        share = self._even(first, last)
        steady = (1.0 - share) * begin + share * end
        mixed = (1.0 - share) ** 2 * begin + share**2 * end
        detail = np.array([self._frames[place].detail for place in _between(first, last).tolist()])
        return float(((steady - detail) / np.maximum(steady - mixed, 1e-9))[1:-1].mean())

    def _resolved(self, before: int) -> list[Transition]:
        """Of dissolves that overlap the best one, once none that is yet to be found can overlap them."""
        transitions: list[Transition] = []
        for group in _groups(self._found):
            if max(found.last for found in group) > before:
                continue
            self._found = [found for found in self._found if found not in group]
            transitions += [self._transition(found) for found in _best(group)]
        first = min([self._num_dropped, *(found.first for found in self._found)])
        for place in [place for place in self._numbers if place < first]:
            del self._numbers[place]
        return transitions

    def _transition(self, found: _Found) -> Transition:
        """Its ends show one picture each, and belong to the shots; the frames between them do not."""
        return Transition(self._numbers[found.first + 1], self._numbers[found.last])


def _between(first: int, last: int) -> np.ndarray:
    """Places of frames at equal parts of the way between two."""
    return first + np.round(np.arange(1, _PARTS) * (last - first) / _PARTS).astype(int)


def _groups(found: list[_Found]) -> list[list[_Found]]:
    """Those that overlap, directly or by others between them, together."""
    groups: list[list[_Found]] = []
    end = -1
    for one in sorted(found, key=lambda one: (one.first, one.last)):
        if one.first >= end:
            groups.append([])
        groups[-1].append(one)
        end = max(end, one.last)
    return groups


def _best(group: list[_Found]) -> list[_Found]:
    """The best of them, and of the others those that do not overlap it, and so on; in the order of frames."""
    chosen: list[_Found] = []
    for one in sorted(group, key=lambda one: (-one.worth, one.first)):
        if all(one.last <= other.first or one.first >= other.last for other in chosen):
            chosen.append(one)
    return sorted(chosen, key=lambda one: one.first)
