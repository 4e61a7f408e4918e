"""A law from points, by either method, with its intervals.

Shape legend: P points, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megavideo.config.schema.fit import FitMethod, FitResidual
from megavideo.scaling.huber import HuberProblem, fit_huber, huber_sum
from megavideo.scaling.law import Law
from megavideo.scaling.points import Points
from megavideo.scaling.projection import fit_projection

NUM_FITTED = 5
_REWEIGHTED = 2
_LEAST_LOSS = 1e-9
_BY_LOGARITHM = frozenset(("A", "B", "params", "tokens"))


@dataclass(frozen=True)
class Interval:
    """What holds a value with the confidence that was asked for."""

    low: float
    high: float


@dataclass(frozen=True)
class Fitter:
    """How a law is fitted: see `FitRun`."""

    method: FitMethod
    residual: FitResidual
    delta: float

    def fit(self, points: Points) -> Law:
        """The law of the points, from many starts."""
        if self.method == "huber":
            return fit_huber(self._problem(points))[0]
        if self.residual == "loss":
            return fit_projection(points.params, points.tokens, points.loss, np.ones_like(points.loss))
        # Errors relative to the law's own value are those of the logarithm to first order; relative to the measured
        # one they would draw the law to the lower points.
        law = fit_projection(points.params, points.tokens, points.loss, 1 / points.loss)
        for _ in range(_REWEIGHTED):
            weight = 1 / law.loss(points.params, points.tokens)
            law = fit_projection(points.params, points.tokens, points.loss, weight, law)
        return law

    def fit_near(self, points: Points, law: Law) -> Law:
        """The law of points that lie about `law`, from there alone: to what a resample needs."""
        if self.method == "huber":
            return fit_huber(self._problem(points), law)[0]
        weight = 1 / law.loss(points.params, points.tokens) if self.residual == "log" else np.ones_like(points.loss)
        return fit_projection(points.params, points.tokens, points.loss, weight, law, tolerance=1e-8)

    def objective(self, points: Points, law: Law) -> float:
        """What is minimised: a sum of squares, or of Huber's loss."""
        errors = self.errors(points, law)
        return huber_sum(errors, self.delta) if self.method == "huber" else float(np.sum(errors**2))

    def errors(self, points: Points, law: Law) -> np.ndarray:
        """Predicted less measured, of losses or their logarithms, [P]."""
        predicted = law.loss(points.params, points.tokens)
        if self.residual == "loss":
            return predicted - points.loss
        return np.log(predicted / points.loss)

    def _problem(self, points: Points) -> HuberProblem:
        return HuberProblem.of(points.params, points.tokens, points.loss, self.delta, self.residual)


def resampled_losses(
    points: Points, law: Law, fitter: Fitter, resamples: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Losses [P] whose errors are dealt out anew about the fitted law, from `rng`.

    Sizes and tokens stay, as they were chosen and not drawn. Errors are centred, and widened by sqrt(P / (P - 5)) as
    five numbers were fitted to them (Davison and Hinkley 1997, section 6.2.3).
    """
    errors = -fitter.errors(points, law)
    widened = (errors - errors.mean()) * np.sqrt(len(points) / (len(points) - NUM_FITTED))
    predicted = law.loss(points.params, points.tokens)
    for _ in range(resamples):
        drawn = widened[rng.integers(len(points), size=len(points))]
        yield predicted * np.exp(drawn) if fitter.residual == "log" else np.maximum(predicted + drawn, _LEAST_LOSS)


def intervals_of(
    found: Mapping[str, float], drawn: Sequence[Mapping[str, float]], confidence: float
) -> dict[str, Interval]:
    """An interval about each value that was `found`, half as wide to each side as that of the resamples' percentiles.

    Percentiles themselves carry the bias of a resample twice, and hold too little (Davison and Hinkley 1997, section
    5.3). Coefficients and sizes are taken by their logarithms. What is not finite in too many resamples has none.
    """
    intervals = {}
    for name, value in found.items() if drawn else ():
        change, back = (np.log, np.exp) if name in _BY_LOGARITHM else (np.asarray, np.asarray)
        with np.errstate(divide="ignore", invalid="ignore"):
            values, middle = change(np.array([each[name] for each in drawn])), change(value)
            low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
        half = (high - low) / 2
        if np.isfinite(half) and np.isfinite(middle):
            intervals[name] = Interval(float(back(middle - half)), float(back(middle + half)))
    return intervals
