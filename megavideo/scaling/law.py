"""The law of Hoffmann et al. 2022 (equation 2), what it says of a budget, and how a model's work grows with its size.

Shape legend: P points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta for N parameters and D tokens."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Predicted loss of models of `params` on `tokens`, each [P] or a number."""
        return np.asarray(self.E + self.A * np.power(params, -self.alpha) + self.B * np.power(tokens, -self.beta))

    def values(self) -> np.ndarray:
        """(E, A, B, alpha, beta)."""
        return np.array([self.E, self.A, self.B, self.alpha, self.beta])


@dataclass(frozen=True)
class TokenCost:
    """Training FLOPs of one token by a model of N parameters: `factor` * N^`power`.

    Six N (Kaplan et al. 2020, section 2.1) is `factor` 6 and `power` 1. Attention is not in that, so that for video the
    two are fitted on FLOPs that were counted: `worst` is the largest relative error of the fit over the points.
    """

    factor: float
    power: float
    worst: float = 0.0

    def flops(self, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Training FLOPs of models of `params` over `tokens`."""
        return np.asarray(self.factor * np.power(params, self.power) * tokens)

    def tokens(self, params: np.ndarray | float, flops: np.ndarray | float) -> np.ndarray:
        """The tokens that `flops` pay for."""
        return np.asarray(flops / (self.factor * np.power(params, self.power)))


@dataclass(frozen=True)
class Optimum:
    """What a budget of `flops` is best spent on, and the loss predicted of it. Sizes are no whole numbers here."""

    flops: float
    params: float
    tokens: float
    loss: float


def fit_token_cost(params: np.ndarray, tokens: np.ndarray, flops: np.ndarray) -> TokenCost:
    """The cost of a token over models of `params` [P], by least squares on logarithms.

    Models of one size alone tell no power: they are given 1.
    """
    x, y = np.log(params), np.log(flops / tokens)
    spread = float(np.sum((x - x.mean()) ** 2))
    power = float(np.sum((x - x.mean()) * (y - y.mean())) / spread) if spread > 0 else 1.0
    level = float(y.mean() - power * x.mean())
    worst = float(np.max(np.abs(np.expm1(level + power * x - y))))
    return TokenCost(float(np.exp(level)), power, worst)


def size_exponent(law: Law, cost: TokenCost) -> float:
    """The power of compute with which the best number of parameters grows: beta / (alpha + power * beta)."""
    return law.beta / (law.alpha + cost.power * law.beta)


def optimum(law: Law, cost: TokenCost, flops: float) -> Optimum:
    """The minimum of the law over models that `flops` pay for.

    Where k N^p D = C, the derivative by N of A / N^alpha + B (k N^p / C)^beta vanishes at
    N^(alpha + p beta) = alpha A / (p beta B) (C / k)^beta: Hoffmann et al. 2022, equation 4, for a power p of the cost.
    """
    total = law.alpha + cost.power * law.beta
    level = np.log(law.alpha * law.A / (cost.power * law.beta * law.B)) + law.beta * np.log(flops / cost.factor)
    params = float(np.exp(level / total))
    tokens = float(cost.tokens(params, flops))
    return Optimum(flops, params, tokens, float(law.loss(params, tokens)))
