"""The metrics of a run as columns, and curves of them that a picture can hold.

Shape legend: R rows, P points.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from megavideo.observe.plot import smooth
from megavideo.observe.rows import Row
from megavideo.observe.salvage import DamageCounter, iterate_rows

_MOST_POINTS = 1200
_FEW_POINTS = 3.0


@dataclass(frozen=True)
class Series:
    """Steps [R], and for each number of the rows its values [R], not a number where a row has none.

    `stages` are the names of the stages with the places [begin, end) of their rows, in order.
    """

    steps: np.ndarray
    columns: dict[str, np.ndarray]
    stages: tuple[tuple[str, int, int], ...]
    damaged: int

    def __len__(self) -> int:
        return len(self.steps)

    def column(self, name: str) -> np.ndarray:
        """The values of `name` [R]; not a number throughout where no row has it."""
        return self.columns.get(name, np.full(len(self), np.nan))

    def has(self, name: str) -> bool:
        """Whether any row has a finite number of that name."""
        return bool(np.isfinite(self.column(name)).any())

    def applied(self) -> np.ndarray:
        """Which rows [R] are of steps that were not skipped."""
        return ~(self.column("skipped") == 1.0)


@dataclass(frozen=True)
class Curve:
    """Points [P] of a curve: the mean of the rows that a point stands for, and their least and greatest value."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def read_series(path: Path) -> Series:
    """The columns of a metrics file, row by row, so that a long file does not have to fit in memory as text."""
    counter = DamageCounter()
    steps, columns, stages = _collect(iterate_rows(path, counter))
    begins = [*(begin for _, begin in stages), len(steps)]
    spans = tuple((name, *span) for (name, _), span in zip(stages, pairwise(begins), strict=True))
    arrays = {name: np.frombuffer(values, float) for name, values in columns.items()}
    return Series(np.array(steps, np.int64), arrays, spans, counter.lines)


def curve(steps: np.ndarray, values: np.ndarray) -> Curve:
    """At most 1,200 points of `values` [R]; rows without a finite number are left out."""
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if len(values) <= _MOST_POINTS:
        return Curve(steps, values, values, values)
    begins = np.linspace(0, len(values), _MOST_POINTS, endpoint=False).astype(int)
    counts = np.diff([*begins, len(values)])
    return Curve(
        steps[begins + counts // 2],
        np.add.reduceat(values, begins) / counts,
        np.minimum.reduceat(values, begins),
        np.maximum.reduceat(values, begins),
    )


def curves_by_stage(series: Series, values: np.ndarray) -> tuple[Curve, ...]:
    """A curve of `values` [R] for each stage that has any, so that none is smoothed into the next."""
    spans = [(series.steps[begin:end], values[begin:end]) for _, begin, end in series.stages]
    return tuple(curve(steps, part) for steps, part in spans if np.isfinite(part).any())


def smoothed(points: Curve) -> np.ndarray:
    """The mean curve [P] smoothed both ways, over a sixtieth of its length as in the plot that a run draws itself.

    Where a point already is the mean of many rows, a few points are enough.
    """
    half_life = max(len(points.mean) / 60, 1.0) if np.array_equal(points.low, points.high) else _FEW_POINTS
    return smooth(points.mean, half_life)


def _collect(rows: Iterable[Row]) -> tuple[array, dict[str, array], list[tuple[str, int]]]:
    steps: array = array("q")
    columns: dict[str, array] = {}
    stages: list[tuple[str, int]] = []
    for place, row in enumerate(rows):
        steps.append(row["step"])
        name = str(row.get("stage") or "")
        if not stages or stages[-1][0] != name:
            stages.append((name, place))
        for key, value in row.items():
            if isinstance(value, int | float) and key != "step":
                if key not in columns:
                    columns[key] = array("d")
                _fill(columns[key], place)
                columns[key].append(value)
    for values in columns.values():
        _fill(values, len(steps))
    return steps, columns, stages


def _fill(values: array, length: int) -> None:
    """Rows that lacked the number have none."""
    if len(values) < length:
        values.extend([float("nan")] * (length - len(values)))
