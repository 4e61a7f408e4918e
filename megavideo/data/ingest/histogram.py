"""Counts of values in equal bins: all that a chart needs of any number of clips."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

_BINS = 40


@dataclass
class Span:
    """The least and the greatest of the values that were seen."""

    low: float = math.inf
    high: float = -math.inf

    def add(self, value: float) -> None:
        """See a value."""
        self.low = min(self.low, value)
        self.high = max(self.high, value)


@dataclass
class Histogram:
    """Kept and dropped clips over a span of values, which is known before they are counted."""

    span: Span
    kept: list[int] = field(default_factory=lambda: [0] * _BINS)
    dropped: list[int] = field(default_factory=lambda: [0] * _BINS)

    @classmethod
    def of(cls, kept: npt.NDArray[Any], dropped: npt.NDArray[Any]) -> Histogram:
        """That of values which are all at hand."""
        both = np.concatenate([kept, dropped])
        counted = cls(Span(float(both.min()), float(both.max())) if len(both) else Span())
        for values, counts in ((kept, counted.kept), (dropped, counted.dropped)):
            counts[:] = np.histogram(values, counted.edges)[0].tolist()
        return counted

    @property
    def limits(self) -> tuple[float, float]:
        """Where the first bin begins and the last one ends."""
        low, high = (self.span.low, self.span.high) if self.span.low <= self.span.high else (0.0, 1.0)
        return (low, high) if low < high else (low - 0.5, high + 0.5)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """The ends of the bins, one more than there are bins."""
        return np.linspace(*self.limits, _BINS + 1)

    def add(self, value: float, kept: bool) -> None:
        """Count a value."""
        low, high = self.limits
        place = min(max(int((value - low) / (high - low) * _BINS), 0), _BINS - 1)
        (self.kept if kept else self.dropped)[place] += 1
