"""The law by Huber's loss on logarithms from many starts, as Hoffmann et al. 2022 (appendix D.3) fit theirs.

Shape legend: P points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares, minimize, nnls

from megavideo.config.schema.fit import FitResidual
from megavideo.scaling.law import Law

_START_EXPONENTS = (0.1, 0.25, 0.4, 0.6, 0.9)
_START_SHARES = (0.3, 0.6, 0.9)
_LEAST = 1e-30  # of a coefficient that is searched for by its logarithm
_MOST_LOGARITHM = 60.0
_POLISHED = 3  # of the best of many starts


@dataclass(frozen=True)
class HuberProblem:
    """Sizes and tokens as logarithms about their means, losses [P], and Huber's `delta`.

    Searched is (ln E, ln A, ln B, alpha, beta). The errors are those of the logarithm of the loss, or of the loss.
    """

    log_params: np.ndarray
    log_tokens: np.ndarray
    loss: np.ndarray
    delta: float
    residual: FitResidual
    log_scale: tuple[float, float]

    @classmethod
    def of(
        cls, params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, delta: float, residual: FitResidual
    ) -> HuberProblem:
        """From numbers as they are."""
        x, y = np.log(params), np.log(tokens)
        return cls(x - x.mean(), y - y.mean(), loss, delta, residual, (float(x.mean()), float(y.mean())))

    def errors(self, point: np.ndarray) -> np.ndarray:
        """[P]."""
        return self._errors_and_slopes(point)[0]

    def slopes(self, point: np.ndarray) -> np.ndarray:
        """Derivatives of the errors, [P, 5]."""
        return self._errors_and_slopes(point)[1]

    def objective(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """The sum of Huber's loss over the points, and its gradient [5]."""
        errors, slopes = self._errors_and_slopes(point)
        return huber_sum(errors, self.delta), np.clip(errors, -self.delta, self.delta) @ slopes

    def law(self, point: np.ndarray) -> Law:
        """In the units that were given."""
        E, A, B = np.exp(point[:3])
        alpha, beta = point[3:]
        return Law(
            float(E), float(A * np.exp(alpha * self.log_scale[0])), float(B * np.exp(beta * self.log_scale[1])),
            float(alpha), float(beta),
        )  # fmt: skip

    def point(self, law: Law) -> np.ndarray:
        """A law as a start."""
        A = law.A * np.exp(-law.alpha * self.log_scale[0])
        B = law.B * np.exp(-law.beta * self.log_scale[1])
        return np.array([*np.log(np.maximum([law.E, A, B], _LEAST)), law.alpha, law.beta])

    def starts(self) -> Iterator[np.ndarray]:
        """Pairs of exponents with shares of E in the lowest loss, each with the A and B that fit best."""
        for alpha in _START_EXPONENTS:
            for beta in _START_EXPONENTS:
                design = np.stack([np.exp(-alpha * self.log_params), np.exp(-beta * self.log_tokens)], axis=1)
                for share in _START_SHARES:
                    E = share * self.loss.min()
                    A, B = np.maximum(nnls(design, self.loss - E)[0], 0.01 * E)
                    yield np.array([*np.log([E, A, B]), alpha, beta])

    def _errors_and_slopes(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        terms = np.stack([
            np.full_like(self.loss, point[0]), point[1] - point[3] * self.log_params,
            point[2] - point[4] * self.log_tokens,
        ])  # fmt: skip
        parts = np.exp(np.clip(terms, -_MOST_LOGARITHM, _MOST_LOGARITHM))
        predicted = parts.sum(0)
        if self.residual == "log":
            errors, parts = np.log(predicted) - np.log(self.loss), parts / predicted
        else:
            errors = predicted - self.loss
        return errors, np.stack([*parts, -parts[1] * self.log_params, -parts[2] * self.log_tokens], axis=1)


def huber_sum(errors: np.ndarray, delta: float) -> float:
    """Huber 1964: half the square up to `delta`, linear beyond, summed."""
    size = np.abs(errors)
    return float(np.where(size <= delta, 0.5 * errors**2, delta * (size - 0.5 * delta)).sum())


def fit_huber(problem: HuberProblem, near: Law | None = None) -> tuple[Law, float]:
    """The law and its objective, from many starts, or from `near` alone where given."""
    if near is not None:
        found = _descend(problem, problem.point(near))
        return problem.law(found.x), float(found.fun)
    ends = sorted((_descend(problem, start) for start in problem.starts()), key=lambda end: float(end.fun))
    polished = [_polish(problem, end.x) for end in ends[:_POLISHED]]
    best = min(polished, key=lambda point: problem.objective(point)[0])
    return problem.law(best), problem.objective(best)[0]


def _descend(problem: HuberProblem, start: np.ndarray) -> Any:
    return minimize(
        problem.objective, start, jac=True, method="L-BFGS-B",
        options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-10, "maxcor": 20},
    )  # fmt: skip


def _polish(problem: HuberProblem, point: np.ndarray) -> np.ndarray:
    """By Gauss-Newton steps, where L-BFGS has crept along a flat valley to its last digits."""
    found = least_squares(
        problem.errors, point, problem.slopes, loss="huber", f_scale=problem.delta, x_scale="jac", xtol=1e-15,
        ftol=1e-15, gtol=1e-15, max_nfev=2000,
    )  # fmt: skip
    again = _descend(problem, found.x)
    return min((point, found.x, again.x), key=lambda end: problem.objective(end)[0])
