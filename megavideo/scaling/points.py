"""Points that laws are fitted to.

Shape legend: P points.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from megavideo.errors import DataError

LEAST_POINTS = 6  # one more than a law has numbers
_LEAST_VALUES = 3  # of sizes and of tokens
_ALIKE = 1.15  # FLOPs of one budget, the most over the least


@dataclass(frozen=True)
class Points:
    """Trained models: parameters, training tokens, training FLOPs, budget and final loss, each float64 [P].

    `budget` is the compute at which a run was aimed, by which runs are grouped. `learning_rate` and `batch_tokens` [P]
    are None where a table has none. `source` is named in messages; `counted` says where the FLOPs are from.
    """

    source: str
    counted: str
    params: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    budget: np.ndarray
    loss: np.ndarray
    learning_rate: np.ndarray | None = None
    batch_tokens: np.ndarray | None = None

    def __len__(self) -> int:
        """Return P."""
        return len(self.loss)

    def take(self, chosen: np.ndarray) -> Points:
        """Those of a mask [P] or of places."""
        arrays = {
            field.name: getattr(self, field.name)[chosen]
            for field in fields(self)
            if isinstance(getattr(self, field.name), np.ndarray)
        }
        return replace(self, **arrays)


def group_budgets(flops: np.ndarray) -> np.ndarray:
    """FLOPs [P] that are alike, within 15 %, as one budget: their geometric mean, [P]."""
    order = np.argsort(flops)
    budget = np.empty_like(flops)
    begin = 0
    for place in range(1, len(order) + 1):
        if place == len(order) or flops[order[place]] > _ALIKE * flops[order[begin]]:
            members = order[begin:place]
            budget[members] = np.exp(np.log(flops[members]).mean())
            begin = place
    return budget


def choose(points: Points, drop_highest: int, flops_below: float | None) -> Points:
    """Without the points of highest loss, and those of `flops_below` or more. Raises DataError where too few stay.

    The highest are those of all points, whatever their FLOPs.
    """
    if drop_highest:
        points = points.take(np.sort(np.argsort(points.loss, kind="stable")[: max(0, len(points) - drop_highest)]))
    if flops_below is not None:
        points = points.take(points.flops < flops_below)
    check_enough(points)
    return points


def check_enough(points: Points) -> None:
    """Raises DataError where the points cannot tell the five numbers of a law."""
    if len(points) < LEAST_POINTS:
        raise DataError(
            f"{points.source}: {len(points)} points are left, and a law of five numbers needs {LEAST_POINTS} at the "
            "least. Remedy: add runs of other sizes and lengths"
        )
    for name, values in (("parameters", points.params), ("tokens", points.tokens)):
        found = len(np.unique(values))
        if found < _LEAST_VALUES:
            raise DataError(
                f"{points.source}: the points have {found} different numbers of {name}, and a law needs "
                f"{_LEAST_VALUES} at the least. Remedy: add runs of another number of {name}"
            )
