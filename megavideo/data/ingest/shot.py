"""A run of frames without a cut, while it is read: samples of its frames, and its division into pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from megavideo.data.ingest.filters.score import FRAMES_PER_SECOND
from megavideo.data.ingest.letterbox import Bars
from megavideo.data.ingest.part import Box
from megavideo.data.ingest.seen import SeenFrame

# 1,024 frames of 256 x 144 take 113 MB: a shot of any length stays below.
_MOST_SAMPLES = 1024
# Pieces of at most so many seconds have samples enough if a shot is closed when it is full, instead of thinned out.
CLOSED_SECONDS = _MOST_SAMPLES / FRAMES_PER_SECOND / 2
# A shot of a few frames is judged by all of them.
_FIRST_FRAMES = 8

Lines = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Window:
    """A piece of a shot: `frames` frames from `start` of the file on, at `start_seconds`.

    `digests` are those of its frames' pictures. `fps` is the real average rate. `samples` uint8 [T, h, w, 3] are frames
    of it in order, and `seconds` their times.
    """

    start: int
    start_seconds: float
    digests: tuple[str, ...]
    frames: int
    fps: float
    seconds: tuple[float, ...]
    samples: np.ndarray


class Shot:
    """Collects the frames of a shot, eight a second, fewer of a very long one, and all of a very short one."""

    def __init__(self, start: int, is_transition: bool = False) -> None:
        self.is_transition = is_transition
        self._start = start
        self._times: list[float] = []
        self._digests: list[str] = []
        self._samples: list[tuple[int, np.ndarray]] = []
        self._first: list[tuple[int, np.ndarray]] = []
        self._every_seconds = 1.0 / FRAMES_PER_SECOND
        self._bars = Bars()

    def add(self, seen: SeenFrame) -> None:
        """Take the next frame of the shot."""
        seconds = seen.seconds
        # Half a millisecond: clocks of files are rounded.
        if not self._samples or abs(seconds - self._time_of(self._samples[-1][0])) >= self._every_seconds - 5e-4:
            self._samples.append((seen.index, seen.small))
            if len(self._samples) > _MOST_SAMPLES:
                self._samples = self._samples[::2]
                self._every_seconds *= 2
        if len(self._times) < _FIRST_FRAMES:
            self._first.append((seen.index, seen.small))
        self._times.append(seconds)
        self._digests.append(seen.digest)
        if seen.bright is not None:
            self._bars.add_bright(seen.bright)

    @property
    def is_full(self) -> bool:
        """True where further frames would thin out the samples."""
        return len(self._samples) >= _MOST_SAMPLES

    def box(self) -> tuple[Box | None, Lines]:
        """The picture without letterbox, and how bright the lines of the whole are."""
        return self._bars.box(), self._bars.lines()

    def windows(self, max_seconds: float | None, rate: Callable[[list[float]], float]) -> Iterator[Window]:
        """The shot in pieces of equally many frames, in the mean of at most `max_seconds`.

        `rate` gives frames a second of a list of times.
        """
        count = len(self._times)
        pieces = 1 if max_seconds is None else math.ceil(count / rate(self._times) / max_seconds - 1e-9)
        pieces = max(1, min(pieces, count))
        edges = [self._start + round(number * count / pieces) for number in range(pieces + 1)]
        for begin, end in pairwise(edges):
            samples = [sample for sample in self._samples if begin <= sample[0] < end]
            if end - begin <= _FIRST_FRAMES and begin == self._start:
                samples = self._first[: end - begin]
            elif not samples:
                # Thinned out: the nearest stands for it.
                samples = [min(self._samples, key=lambda sample: abs(sample[0] - begin))]
            times = self._times[begin - self._start : end - self._start]
            seconds = tuple(self._time_of(index) for index, _ in samples)
            pictures = np.stack([small for _, small in samples])
            digests = tuple(self._digests[begin - self._start : end - self._start])
            yield Window(begin, times[0], digests, end - begin, rate(times), seconds, pictures)

    def _time_of(self, index: int) -> float:
        return self._times[index - self._start]
