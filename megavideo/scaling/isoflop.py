"""Parabolas of loss over the logarithm of size at one budget each, and power laws of their lowest points.

Hoffmann et al. 2022, section 3.2.

Shape legend: P points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megavideo.scaling.law import Law, TokenCost, optimum, size_exponent
from megavideo.scaling.points import Points

LEAST_POINTS = 3


@dataclass(frozen=True)
class Parabola:
    """loss = `lowest` + `curvature` * ln(N / `params`)^2 through `num_points` of one `budget`.

    The points lie between `smallest` and `largest` parameters. `offset` is how far the lowest point is from the middle
    of them, in halves of their width: beyond 1 it lies outside. `tokens` are those that the budget pays for there.
    """

    budget: float
    num_points: int
    params: float
    tokens: float
    lowest: float
    curvature: float
    smallest: float
    largest: float
    offset: float

    @property
    def inside(self) -> bool:
        """Whether the lowest point lies between the points."""
        return abs(self.offset) <= 1


@dataclass(frozen=True)
class PowerLaw:
    """y = `factor` * x^`power`."""

    factor: float
    power: float

    def at(self, x: np.ndarray | float) -> np.ndarray:
        """The law's y."""
        return np.asarray(self.factor * np.power(x, self.power))


@dataclass(frozen=True)
class Bias:
    """What parabolas make of a law without noise, on the grid that was measured.

    `exponent` is their power of compute less the law's own, and `worst` the largest factor by which one of them misses
    the best size, from 1 on.
    """

    exponent: float | None
    worst: float


def fit_parabolas(points: Points) -> tuple[list[Parabola], list[str]]:
    """A parabola for each budget, by budget, and for budgets that have none the reason."""
    found, refused = [], []
    for budget in np.unique(points.budget):
        members = points.take(points.budget == budget)
        sizes = len(np.unique(members.params))
        if sizes < LEAST_POINTS:
            refused.append(f"{budget:.3g} FLOPs: {sizes} sizes, and a parabola needs {LEAST_POINTS}")
            continue
        parabola = _parabola(float(budget), members)
        if parabola is None:
            refused.append(f"{budget:.3g} FLOPs: the loss has no lowest point over size")
        else:
            found.append(parabola)
    return found, refused


def fit_power_law(x: np.ndarray, y: np.ndarray) -> PowerLaw | None:
    """By least squares on logarithms; None for fewer than two different x."""
    if len(np.unique(x)) < 2:
        return None
    power, level = np.polyfit(np.log(x), np.log(y), 1)
    return PowerLaw(float(np.exp(level)), float(power))


def size_law(parabolas: list[Parabola]) -> PowerLaw | None:
    """Best size over compute, by the parabolas whose lowest point lies in their grid."""
    inside = [p for p in parabolas if p.inside]
    return fit_power_law(np.array([p.budget for p in inside]), np.array([p.params for p in inside]))


def token_law(parabolas: list[Parabola]) -> PowerLaw | None:
    """Best number of tokens over compute, likewise."""
    inside = [p for p in parabolas if p.inside]
    return fit_power_law(np.array([p.budget for p in inside]), np.array([p.tokens for p in inside]))


def parabola_bias(points: Points, law: Law, cost: TokenCost) -> Bias | None:
    """What the parabolas of these sizes and tokens would say if the law were true; None where there is none.

    A law's loss over ln N is no parabola, and steeper on one side unless alpha and beta are alike: the wider the grid,
    and the farther off its middle lies, the more a parabola misses.
    """
    ideal = Points(
        points.source, points.counted, points.params, points.tokens, cost.flops(points.params, points.tokens),
        points.budget, law.loss(points.params, points.tokens),
    )  # fmt: skip
    parabolas, _ = fit_parabolas(ideal)
    if not parabolas:
        return None
    truth = np.array([optimum(law, cost, p.budget).params for p in parabolas])
    missed = np.abs(np.log(np.array([p.params for p in parabolas]) / truth))
    seen = size_law(parabolas)
    exponent = None if seen is None else seen.power - size_exponent(law, cost)
    return Bias(exponent, float(np.exp(min(missed.max(), 50.0))))


def _parabola(budget: float, members: Points) -> Parabola | None:
    x = np.log(members.params)
    middle, half = (x.max() + x.min()) / 2, (x.max() - x.min()) / 2
    curvature, slope, level = np.polyfit((x - middle) / half, members.loss, 2)  # scaled, so that it is well conditioned
    if curvature <= 0:
        return None
    offset = -slope / (2 * curvature)
    lowest = middle + offset * half
    with np.errstate(over="ignore"):
        params = float(np.exp(lowest))
    if not np.isfinite(params):
        return None
    # tokens of the budget at that size, between those that were run
    per_token = np.polyfit(x, np.log(members.flops / members.tokens), 1)
    tokens = float(np.exp(np.log(budget) - np.polyval(per_token, lowest)))
    return Parabola(
        budget, len(members), params, tokens, float(level - slope**2 / (4 * curvature)),
        float(curvature / half**2), float(np.exp(x.min())), float(np.exp(x.max())), float(offset),
    )  # fmt: skip
