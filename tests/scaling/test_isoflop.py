"""Parabolas, what they miss on which grids, and that they say so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from megavideo.scaling.diagnostics import conditioning, on_law, on_parabolas, on_points, on_use
from megavideo.scaling.isoflop import fit_parabolas, fit_power_law, parabola_bias, size_law, token_law
from megavideo.scaling.law import Law, TokenCost, optimum, size_exponent
from megavideo.scaling.points import Points, group_budgets
from tests.scaling.laws import LAWS, SIX_ND, budgets, points_of

SYMMETRIC, SKEW = LAWS[3], Law(1.69, 406.4, 410.7, 0.5, 0.2)


def kinds(points: Points, law: Law) -> set[str]:
    parabolas, refused = fit_parabolas(points)
    return {caution.kind for caution in on_parabolas(parabolas, refused, parabola_bias(points, law, SIX_ND))}


def test_a_parabola_is_found_again() -> None:
    size = np.geomspace(1e8, 4e9, 9)
    flops = np.full(9, 1e20)
    points = Points("made", "made", size, flops / (6 * size), flops, flops, 2.0 + 0.03 * np.log(size / 7e8) ** 2)
    (found,), refused = fit_parabolas(points)
    assert not refused
    assert (found.params, found.lowest, found.curvature) == pytest.approx((7e8, 2.0, 0.03))
    assert found.tokens == pytest.approx(1e20 / (6 * 7e8))
    assert (found.smallest, found.largest, found.num_points) == (pytest.approx(1e8), pytest.approx(4e9), 9)
    middle = np.sqrt(1e8 * 4e9)
    assert found.offset == pytest.approx(np.log(7e8 / middle) / np.log(4e9 / middle))


def test_budgets_without_a_lowest_point() -> None:
    size, flops = np.geomspace(1e8, 1e9, 6), np.repeat([1e19, 1e20, 1e21], [2, 3, 1])
    points = Points("made", "made", size, flops / (6 * size), flops, flops, np.array([2.0, 1.9, 1.7, 1.9, 1.7, 1.0]))
    found, refused = fit_parabolas(points)
    assert found == [] and len(refused) == 3
    assert any("2 sizes" in reason for reason in refused) and any("no lowest point" in reason for reason in refused)
    assert {"no_parabola", "few_budgets"} <= kinds(points, LAWS[0])


def test_a_good_grid_is_not_flagged() -> None:
    points = budgets(SYMMETRIC, width=8)
    assert kinds(points, SYMMETRIC) == set()
    parabolas, _ = fit_parabolas(points)
    law, tokens = size_law(parabolas), token_law(parabolas)
    assert law is not None and tokens is not None
    assert law.power == pytest.approx(size_exponent(SYMMETRIC, SIX_ND), abs=1e-6)
    assert law.power + tokens.power == pytest.approx(1.0)
    assert float(law.at(1e20)) == pytest.approx(optimum(SYMMETRIC, SIX_ND, 1e20).params, rel=1e-3)


@pytest.mark.parametrize(
    ("points", "law", "flagged"),
    [
        (budgets(SKEW, width=32), SKEW, {"parabola_bias"}),
        (budgets(SKEW, width=16, drift=0.25), SKEW, {"parabola_bias", "grid_off_optimum"}),
        (budgets(LAWS[1], width=8, centre=5.0), LAWS[1], {"parabola_bias", "grid_off_optimum"}),
        (budgets(LAWS[1], width=8, centre=0.2), LAWS[1], {"parabola_bias", "grid_off_optimum"}),
        (budgets(LAWS[1], width=3, centre=20.0), LAWS[1], {"parabola_bias", "optimum_outside"}),
        (budgets(LAWS[1], width=1.4), LAWS[1], {"narrow_grid"}),
        (budgets(LAWS[1], width=8, sizes=4), LAWS[1], {"few_sizes"}),
    ],
    ids=["wide and skew", "drifting", "too large", "too small", "outside", "narrow", "few sizes"],
)
def test_a_biased_grid_is_flagged(points: Points, law: Law, flagged: set[str]) -> None:
    assert flagged <= kinds(points, law)


def test_the_bias_is_that_of_parabolas_without_noise() -> None:
    points = budgets(LAWS[0], width=16, drift=0.15)
    bias, seen = parabola_bias(points, LAWS[0], SIX_ND), size_law(fit_parabolas(points)[0])
    assert bias is not None and seen is not None
    assert bias.exponent == pytest.approx(seen.power - size_exponent(LAWS[0], SIX_ND))
    # noise in the losses changes nothing of it, as it is the law's on this grid
    noisy = replace(points, loss=points.loss * 1.1)
    assert parabola_bias(noisy, LAWS[0], SIX_ND) == bias


def test_cautions_on_points_and_laws() -> None:
    size = np.geomspace(1e8, 2e8, 8)
    few = points_of(LAWS[1], size, 20 * size)
    assert {caution.kind for caution in on_points(few)} == {"few_points", "narrow_range", "narrow_compute"}
    errors = np.full(8, 1e-3)
    errors[0] = 0.1
    found = {caution.kind for caution in on_law(few, replace(LAWS[1], E=0.0), conditioning(few, LAWS[1]), errors)}
    assert found == {"ill_conditioned", "at_bound", "outliers"}
    used = {caution.kind for caution in on_use(few, TokenCost(6.0, 1.0, 0.2), 1e25, [1e9, 2e9])}
    assert used == {"extrapolation", "methods_disagree", "token_cost"}
    assert not list(on_use(few, SIX_ND, float(few.flops.max()), [1e9, 1.1e9]))


def test_power_laws_and_groups() -> None:
    x = np.array([1e18, 1e20, 1e21])
    law = fit_power_law(x, 0.3 * x**0.5)
    assert law is not None and (law.factor, law.power) == pytest.approx((0.3, 0.5))
    assert fit_power_law(x[:1], x[:1]) is None
    grouped = group_budgets(np.array([1.0e20, 3e19, 1.05e20, 3.1e19, 1.2e20]))
    assert grouped[0] == grouped[2] != grouped[4] and grouped[1] == grouped[3]
