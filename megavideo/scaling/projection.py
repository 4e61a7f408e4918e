"""The law by variable projection: two exponents are searched for, and E, A and B follow from each pair of them.

For given exponents the law is linear in E, A and B, whose least-squares values (not negative) are found at once (Golub
and Pereyra 1973). What is searched is then well conditioned, and has few minima. The Jacobian of what is left is that
of Kaufman 1975, whose gradient is exact.

Shape legend: P points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares, nnls

from megavideo.scaling.law import Law

LEAST_EXPONENT, MOST_EXPONENT = 0.005, 5.0
_STARTS = tuple((a, b) for a in (0.15, 0.35, 0.7) for b in (0.15, 0.35, 0.7))
_TOLERANCE = 1e-15


@dataclass(frozen=True)
class Projected:
    """Losses [P] at sizes and tokens [P] divided by their geometric means, each weighed by `weight` [P]."""

    log_params: np.ndarray
    log_tokens: np.ndarray
    loss: np.ndarray
    weight: np.ndarray
    log_scale: tuple[float, float]

    @classmethod
    def of(cls, params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, weight: np.ndarray) -> Projected:
        """From numbers as they are."""
        x, y = np.log(params), np.log(tokens)
        return cls(x - x.mean(), y - y.mean(), loss, weight, (float(x.mean()), float(y.mean())))

    def residual(self, log_exponents: np.ndarray) -> np.ndarray:
        """Weighed errors [P] of the best E, A and B."""
        design = self._design(log_exponents)
        return design @ self._linear(design) - self.weight * self.loss

    def jacobian(self, log_exponents: np.ndarray) -> np.ndarray:
        """Of `residual`, [P, 2]."""
        design = self._design(log_exponents)
        _, A, B = self._linear(design)
        alpha, beta = _exponents(log_exponents)
        slopes = np.stack([
            -alpha * A * self.log_params * design[:, 1], -beta * B * self.log_tokens * design[:, 2]
        ], axis=1)  # fmt: skip
        basis, _ = np.linalg.qr(design)
        return slopes - basis @ (basis.T @ slopes)

    def law(self, log_exponents: np.ndarray) -> Law:
        """In the units that were given."""
        alpha, beta = _exponents(log_exponents)
        E, A, B = self._linear(self._design(log_exponents))
        return Law(
            float(E), float(A * np.exp(alpha * self.log_scale[0])), float(B * np.exp(beta * self.log_scale[1])),
            float(alpha), float(beta),
        )  # fmt: skip

    def _design(self, log_exponents: np.ndarray) -> np.ndarray:
        alpha, beta = _exponents(log_exponents)
        columns = [np.ones_like(self.loss), np.exp(-alpha * self.log_params), np.exp(-beta * self.log_tokens)]
        return self.weight[:, None] * np.stack(columns, axis=1)

    def _linear(self, design: np.ndarray) -> np.ndarray:
        target = self.weight * self.loss
        found = np.linalg.lstsq(design, target, rcond=None)[0]
        return found if found.min() >= 0 else nnls(design, target)[0]


def fit_projection(
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    weight: np.ndarray,
    near: Law | None = None,
    tolerance: float = _TOLERANCE,
) -> Law:
    """The law with the least weighed squared error over losses [P]; from the exponents of `near` alone where given."""
    problem = Projected.of(params, tokens, loss, weight)
    starts = _STARTS if near is None else ((near.alpha, near.beta),)
    found = [
        least_squares(
            problem.residual, np.log(start), problem.jacobian, method="lm", ftol=tolerance, xtol=tolerance,
            gtol=tolerance,
        )
        for start in starts
    ]  # fmt: skip
    return problem.law(min(found, key=lambda result: result.cost).x)


def _exponents(logarithms: np.ndarray) -> np.ndarray:
    """Within bounds, as noise can drive one to where a power is but a step."""
    return np.clip(np.exp(logarithms), LEAST_EXPONENT, MOST_EXPONENT)
