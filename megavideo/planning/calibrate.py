"""The free constants of the step-time model, fitted on measured steps, and how well it then does.

Least squares on the logarithm of predicted over measured seconds, with a normal prior on the logarithm of each
constant, so that few rows move them little. What fits cannot say is said by leaving each row out in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

from megavideo.planning.measured import Row
from megavideo.planning.step_time import Constants, step_time

NOISE = 0.05  # of a row: what an unchanged configuration moves between releases, and what a row does not state
_SPREAD = {"products": 0.05, "attention": 0.06, "elements": 0.25, "exposed": 0.4}  # of the priors, in logarithms
_BOUNDS = {"products": (0.3, 1.0), "attention": (0.3, 1.1), "elements": (0.5, 6.0), "exposed": (0.02, 1.0)}
_CONSTANT_MFU = 0.43
_ROUNDS = 30


@dataclass(frozen=True)
class Scored:
    """A row's prediction: seconds, relative error, the span over what the row does not state, and two baselines.

    `constant` is the error of 43 % MFU for everything, and `roofline` that of half of the roofline.
    """

    name: str
    family: str
    measured: float
    predicted: float
    error: float
    low: float
    high: float
    constant: float
    roofline: float
    assumed: tuple[str, ...]
    calibrated: bool


@dataclass(frozen=True)
class Summary:
    """Errors over rows: median, mean and largest, and the share of rows within a quarter."""

    rows: int
    median: float
    mean: float
    largest: float
    within_quarter: float


@dataclass(frozen=True)
class Fit:
    """Constants, their rows as fitted, and each row predicted by constants that it had no part in."""

    constants: Constants
    rows: tuple[Scored, ...]
    left_out: tuple[Scored, ...]


def predict(row: Row, constants: Constants) -> float:
    """Seconds of a row's step."""
    return step_time(row.shape, row.scheme, row.cluster, constants).total


def fit(rows: Sequence[Row], prior: Constants | None = None) -> Constants:
    """Constants at which the rows' errors and the distance from the prior are least."""
    prior = Constants() if prior is None else prior

    def cost(constants: Constants) -> float:
        errors = sum((math.log(predict(row, constants) / row.seconds) / NOISE) ** 2 for row in rows)
        return errors + sum(
            (math.log(getattr(constants, name) / getattr(prior, name)) / spread) ** 2
            for name, spread in _SPREAD.items()
        )

    found = prior
    for _ in range(_ROUNDS):
        before = cost(found)
        for name in _SPREAD:
            found = _best(found, name, cost)
        if before - cost(found) < 1e-6:
            break
    return found


def calibrate(rows: Sequence[Row]) -> Fit:
    """Fit on all rows, and on all but each."""
    constants = fit(rows)
    left_out = [
        score(row, fit([other for other in rows if other is not row])) for row in rows if len(rows) > 1
    ]  # fmt: skip
    return Fit(constants, tuple(score(row, constants) for row in rows), tuple(left_out))


def score(row: Row, constants: Constants) -> Scored:
    """A row's prediction beside its figure, and beside both baselines."""
    seconds = predict(row, constants)
    spans = [predict(other, constants) for other in row.others()] + [seconds]
    peak = row.gpus * row.cluster.chip.bf16_tflops * 1e12
    constant = row.flops / peak / _CONSTANT_MFU
    return Scored(
        name=row.name,
        family=row.family,
        measured=row.seconds,
        predicted=seconds,
        error=seconds / row.seconds - 1,
        low=min(spans),
        high=max(spans),
        constant=constant / row.seconds - 1,
        roofline=roofline(row) / row.seconds - 1,
        assumed=row.assumed,
        calibrated=row.cluster.chip.calibrated,
    )


def roofline(row: Row) -> float:
    """Seconds at half of the peak of what a step computes, and of what it must move through memory, one by one."""
    ideal = replace(row.scheme, kernels="fused")
    best = Constants(products=1.0, attention=1.0, elements=1.0, exposed=0.0)
    times = step_time(row.shape, ideal, row.cluster, best)
    return 2 * (row.flops / row.gpus / (row.cluster.chip.bf16_tflops * 1e12) + times.elements)


def fitted_roofline(rows: Sequence[Row], fitted_on: Sequence[Row]) -> list[float]:
    """Relative errors of the roofline times the one constant that is best on the rows `fitted_on`: a third baseline."""
    share = mean(math.log(row.seconds / roofline(row)) for row in fitted_on)
    return [math.exp(share) * roofline(row) / row.seconds - 1 for row in rows]


def summary(errors: Sequence[float]) -> Summary:
    """Over the absolute values of relative errors."""
    sizes = [abs(error) for error in errors]
    inside = sum(size <= 0.25 for size in sizes) / len(sizes)
    return Summary(len(sizes), median(sizes), mean(sizes), max(sizes), inside)


def _best(constants: Constants, name: str, cost: Callable[[Constants], float]) -> Constants:
    """The constant alone, by golden section on its logarithm."""
    low, high = (math.log(bound) for bound in _BOUNDS[name])
    ratio = (math.sqrt(5) - 1) / 2

    def at(value: float) -> float:
        return cost(replace(constants, **{name: math.exp(value)}))

    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = at(left), at(right)
    while high - low > 1e-3:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = at(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = at(right)
    return replace(constants, **{name: math.exp((low + high) / 2)})
