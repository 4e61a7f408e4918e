"""What a fit cannot say, and why: warnings on the points, on the parabolas and on the law.

Shape legend: P points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megavideo.scaling.isoflop import Bias, Parabola
from megavideo.scaling.law import Law, TokenCost
from megavideo.scaling.points import Points

_FEW_POINTS = 15
_FEW_SIZES = 5  # of one budget
_FEW_BUDGETS = 3
_NARROW = 4.0  # largest over smallest, of sizes and of tokens; of sizes of one budget
_ONE_DECADE = 10.0  # of compute
_OFF_MIDDLE = 0.35  # of half the width of a grid
_BIASED_EXPONENT = 0.01
_BIASED_SIZE = 1.1
_ILL_CONDITIONED = 100.0
_COST_ERROR = 0.05
_FAR_FACTOR = 10.0
_METHODS_APART = 1.25
_WIDE_EXPONENT = 0.5  # width of an interval over the value
_OUTLIER = 6.0  # medians of the errors' size
_NAMED = 4  # budgets in one caution


@dataclass(frozen=True)
class Caution:
    """One thing to know before a fit is believed: its `kind` and what was found."""

    kind: str
    words: str


@dataclass(frozen=True)
class Conditioning:
    """Condition numbers of the Gauss-Newton Hessian: of all five numbers as they are, and of the two exponents alone.

    The latter is that of variable projection. It measures whether the points tell the exponents apart.
    """

    whole: float
    projected: float


def conditioning(points: Points, law: Law) -> Conditioning:
    """At the fitted law."""
    size, token = points.params**-law.alpha, points.tokens**-law.beta
    slopes = np.stack([-law.A * size * np.log(points.params), -law.B * token * np.log(points.tokens)], axis=1)
    linear = np.stack([np.ones_like(size), size, token], axis=1)
    basis, _ = np.linalg.qr(linear / np.linalg.norm(linear, axis=0))
    return Conditioning(
        _squared_condition(np.concatenate([linear, slopes], axis=1)),
        _squared_condition(slopes - basis @ (basis.T @ slopes)),
    )


def on_points(points: Points) -> Iterator[Caution]:
    """Too few points, or too narrow a spread of them."""
    if len(points) < _FEW_POINTS:
        yield Caution("few_points", f"{len(points)} points for five numbers; from {_FEW_POINTS} on errors show")
    for name, values in (("parameters", points.params), ("tokens", points.tokens)):
        spread = values.max() / values.min()
        if spread < _NARROW:
            yield Caution("narrow_range", f"{name} spread over a factor of {spread:.3g}, and {_NARROW:g} is little")
    if (spread := points.flops.max() / points.flops.min()) < _ONE_DECADE:
        yield Caution("narrow_compute", f"compute spreads over a factor of {spread:.3g}, less than a decade")


def on_parabolas(parabolas: list[Parabola], refused: list[str], bias: Bias | None) -> Iterator[Caution]:
    """Budgets without a parabola, grids off the optimum, and what parabolas would miss if the law were true."""
    inside = [parabola for parabola in parabolas if parabola.inside]
    if len(inside) < _FEW_BUDGETS:
        words = f"{len(inside)} budgets with a lowest point in their grid; a power of compute needs {_FEW_BUDGETS}"
        yield Caution("few_budgets", words)
    found: list[tuple[str, str, list[str]]] = [
        ("no_parabola", "no parabola", refused),
        ("optimum_outside", "the lowest point is outside of the grid, and left out of the power law",
         [_at(p) for p in parabolas if not p.inside]),
        ("grid_off_optimum", f"the best size is off the middle of the grid by over {_OFF_MIDDLE:.0%} of its half",
         [f"{_at(p)} {p.offset:+.0%}" for p in inside if abs(p.offset) > _OFF_MIDDLE]),
        ("few_sizes", f"fewer than {_FEW_SIZES} points, and a parabola goes through any three",
         [_at(p) for p in parabolas if p.num_points < _FEW_SIZES]),
        ("narrow_grid", f"sizes spread over less than a factor of {_NARROW:g}, so that noise bends the parabola",
         [_at(p) for p in parabolas if p.largest / p.smallest < _NARROW]),
    ]  # fmt: skip
    for kind, words, places in found:
        if places:
            more = f", and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
            yield Caution(kind, f"{words}: {', '.join(places[:_NAMED])}{more}")
    if bias is not None and bias.exponent is not None and abs(bias.exponent) > _BIASED_EXPONENT:
        words = f"on this grid parabolas miss the law's own power of compute by {bias.exponent:+.3f}"
        yield Caution("parabola_bias", words)
    if bias is not None and bias.worst > _BIASED_SIZE:
        words = f"on this grid a parabola misses the law's best size by a factor of {bias.worst:.3g}"
        yield Caution("parabola_bias", words)


def on_law(points: Points, law: Law, condition: Conditioning, errors: np.ndarray) -> Iterator[Caution]:
    """Exponents that the points do not tell apart, a law at the bound of its numbers, points far off it."""
    if condition.projected > _ILL_CONDITIONED:
        words = f"the exponents' condition number is {condition.projected:.2g}: the points do not tell them apart"
        yield Caution("ill_conditioned", f"{words}, as where tokens grow with size")
    for name, value in (("E", law.E), ("A", law.A), ("B", law.B)):
        if value <= 1e-6 * points.loss.min():
            yield Caution("at_bound", f"{name} came out as 0: the points show no such term")
    size = np.abs(errors)
    far = int(np.sum(size > _OUTLIER * max(float(np.median(size)), 1e-9)))
    if far:
        yield Caution("outliers", f"{far} points are farther off the law than {_OUTLIER:g} times the median of all")


def on_intervals(name: str, low: float, high: float, value: float) -> Iterator[Caution]:
    """An exponent that could be almost anything."""
    if high - low > _WIDE_EXPONENT * abs(value):
        yield Caution("wide_interval", f"{name} = {value:.3g} lies between {low:.3g} and {high:.3g}")


def on_use(points: Points, cost: TokenCost, budget: float, sizes: list[float]) -> Iterator[Caution]:
    """A budget far beyond the points, methods that disagree, and a cost of tokens that is no power of size."""
    most = float(points.flops.max())
    if budget > _FAR_FACTOR * most:
        yield Caution("extrapolation", f"{budget:.3g} FLOPs are {budget / most:.3g} times the most that was run")
    if (apart := max(sizes) / min(sizes)) > _METHODS_APART:
        yield Caution("methods_disagree", f"best sizes by the methods differ by a factor of {apart:.3g}")
    if cost.worst > _COST_ERROR:
        words = f"FLOPs of a token are no power of size: the fit is off by up to {cost.worst:.1%}"
        yield Caution("token_cost", f"{words}, as where shapes or lengths of clips differ")


def _at(parabola: Parabola) -> str:
    return f"{parabola.budget:.3g} FLOPs"


def _squared_condition(slopes: np.ndarray) -> float:
    """Condition number of slopes^T slopes."""
    values = np.linalg.svd(slopes, compute_uv=False)
    return float((values[0] / values[-1]) ** 2) if values[-1] > 0 else float("inf")
