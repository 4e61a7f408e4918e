"""Laws that are known, and points of them."""

from __future__ import annotations

import numpy as np

from megavideo.scaling.law import Law, TokenCost, optimum
from megavideo.scaling.points import Points, group_budgets

LAWS = (
    Law(1.69, 406.4, 410.7, 0.34, 0.28),  # Hoffmann et al. 2022, as printed
    Law(1.81686, 482.006, 2085.434, 0.34781, 0.36585),  # Besiroglu et al. 2024
    Law(0.2, 30.0, 400.0, 0.3, 0.4),
    Law(1.0, 5e3, 5e3, 0.5, 0.5),
    Law(0.05, 2.0, 60.0, 0.15, 0.2),
    Law(2.5, 50.0, 5e4, 0.25, 0.6),
)
SIX_ND = TokenCost(6.0, 1.0)


def points_of(law: Law, params: np.ndarray, tokens: np.ndarray, cost: TokenCost = SIX_ND) -> Points:
    """Points [P] that lie on the law."""
    flops = cost.flops(params, tokens)
    return Points("made", "made", params, tokens, flops, group_budgets(flops), law.loss(params, tokens))


def rectangle(law: Law, side: int = 8) -> Points:
    """A grid of sizes and tokens, as wide as a study's."""
    params = np.repeat(np.geomspace(1e7, 1e10, side), side)
    return points_of(law, params, np.tile(np.geomspace(1e8, 1e12, side), side))


def budgets(law: Law, *, width: float, centre: float = 1.0, drift: float = 0.0, sizes: int = 7) -> Points:
    """Five budgets of `sizes` models, spread from 1 / `width` to `width` times `centre` times the best size.

    With `drift` the centre moves off the best size by that power of compute.
    """
    params, tokens = [], []
    for flops in np.geomspace(1e18, 1e22, 5):
        middle = optimum(law, SIX_ND, float(flops)).params * centre * (flops / 1e20) ** drift
        size = middle * np.geomspace(1 / width, width, sizes)
        params.append(size)
        tokens.append(SIX_ND.tokens(size, float(flops)))
    return points_of(law, np.concatenate(params), np.concatenate(tokens))
