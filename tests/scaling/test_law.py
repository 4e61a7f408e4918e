"""Laws found again from their points, published fits, and what a law says of a budget."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from megavideo.config.schema.fit import ColumnsConfig
from megavideo.scaling.diagnostics import conditioning
from megavideo.scaling.fitting import Fitter, intervals_of, resampled_losses
from megavideo.scaling.law import Law, TokenCost, fit_token_cost, optimum, size_exponent
from megavideo.scaling.points import Points, choose
from megavideo.scaling.table import read_table
from tests.scaling.laws import LAWS, SIX_ND, points_of, rectangle

PROJECTION, HUBER = Fitter("projection", "log", 1e-3), Fitter("huber", "log", 1e-3)
FITTERS = (PROJECTION, HUBER, Fitter("projection", "loss", 1e-3), Fitter("huber", "loss", 1e-3))
NAMES = ("E", "A", "B", "alpha", "beta")


@pytest.mark.parametrize("fitter", FITTERS)
@pytest.mark.parametrize("law", LAWS)
def test_a_law_without_noise_is_found_again(law: Law, fitter: Fitter) -> None:
    found = fitter.fit(rectangle(law))
    np.testing.assert_allclose(found.values(), law.values(), rtol=1e-6)


@pytest.fixture(scope="module")
def chinchilla(repo_root: Path) -> Points:
    """Points read off a published figure (model size, FLOPs, loss); the folder is not part of the project."""
    folder = Path(os.environ.get("MEGAVIDEO_SCALING_TABLES", repo_root.parent / "shared" / "data" / "scaling"))
    if not (folder / "epoch_svg.csv").is_file():
        pytest.skip("no epoch_svg.csv: set MEGAVIDEO_SCALING_TABLES to a folder that has it")
    columns = ColumnsConfig(params="Model Size", flops="Training FLOP")
    return choose(read_table(folder / "epoch_svg.csv", columns, six_nd=True), 5, None)


def test_the_published_refit_of_chinchilla(chinchilla: Points) -> None:
    """Besiroglu et al. 2024 (arXiv 2404.10102), table 1 and their code's objective."""
    found = HUBER.fit(chinchilla)
    assert len(chinchilla) == 240
    assert HUBER.objective(chinchilla, found) == pytest.approx(0.0010182741, rel=1e-3)
    assert (found.E, found.alpha, found.beta) == pytest.approx((1.81686, 0.34781, 0.36585), rel=0.01)
    assert pytest.approx((482.006, 2085.434), rel=0.05) == (found.A, found.B)
    assert size_exponent(found, SIX_ND) == pytest.approx(0.513, rel=0.01)
    drawn = [
        HUBER.fit_near(points_with(chinchilla, loss), found)
        for loss in resampled_losses(chinchilla, found, HUBER, 60, np.random.default_rng(0))
    ]
    held = intervals_of(values_of(found), [values_of(law) for law in drawn], 0.95)
    for name, low, high in (("A", 285, 744), ("B", 1042, 5810), ("alpha", 0.317, 0.373), ("beta", 0.331, 0.415)):
        assert held[name].low < high and held[name].high > low, (name, held[name])


def test_a_published_fit_of_squared_errors(chinchilla: Points) -> None:
    """The example of the library ml-scalefit on the same figure: 217 points below 1e21 FLOPs, N in 1e6, D in 1e9."""
    below = choose(chinchilla, 0, 1e21)
    points = points_of(LAWS[0], below.params / 1e6, below.tokens / 1e9)
    found = Fitter("projection", "loss", 1e-3).fit(points_with(points, below.loss))
    assert len(below) == 217
    np.testing.assert_allclose(found.values(), (1.90506, 4.00010, 1.05093, 0.351012, 0.458793), rtol=1e-3)


def test_no_published_huber_fit_is_better(chinchilla: Points) -> None:
    """The same example by Huber's loss on the loss itself: its published numbers stop short of the minimum."""
    below = choose(chinchilla, 0, 1e21)
    points = points_with(points_of(LAWS[0], below.params / 1e6, below.tokens / 1e9), below.loss)
    fitter = Fitter("huber", "loss", 1e-3)
    found, published = fitter.fit(points), Law(1.82672, 3.70662, 1.03862, 0.324045, 0.407953)
    least = fitter.objective(points, found)
    assert least < fitter.objective(points, published) < least * (1 + 1e-3)
    np.testing.assert_allclose(found.values(), published.values(), rtol=6e-3)


@pytest.mark.parametrize("cost", [SIX_ND, TokenCost(0.9, 1.12)])
@pytest.mark.parametrize("law", LAWS[:3])
def test_the_best_spending_is_the_lowest_loss(law: Law, cost: TokenCost) -> None:
    best = optimum(law, cost, 1e21)
    searched = minimize_scalar(
        lambda size: float(law.loss(np.exp(size), cost.tokens(np.exp(size), 1e21))), bounds=(5, 35), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    assert best.params == pytest.approx(np.exp(searched.x), rel=1e-4)
    assert float(cost.flops(best.params, best.tokens)) == pytest.approx(1e21)
    grown = optimum(law, cost, 1e22)
    assert np.log10(grown.params / best.params) == pytest.approx(size_exponent(law, cost))


def test_the_cost_of_a_token() -> None:
    size = np.geomspace(1e7, 1e10, 9)
    cost = fit_token_cost(size, np.full(9, 1e9), 3.0 * size**1.05 * 1e9)
    assert (cost.factor, cost.power, cost.worst) == pytest.approx((3.0, 1.05, 0.0), abs=1e-9)
    assert fit_token_cost(size[:1], np.array([1e9]), np.array([6e16])).power == 1.0
    bent = fit_token_cost(size, np.full(9, 1e9), 6 * size * 1e9 * np.where(size > 1e9, 2.0, 1.0))
    assert bent.worst > 0.1


def test_what_the_points_cannot_tell_apart() -> None:
    size = np.geomspace(1e7, 1e10, 30)
    line = conditioning(points_of(LAWS[1], size, 20 * size), LAWS[1])
    plane = conditioning(rectangle(LAWS[1]), LAWS[1])
    assert plane.projected < 20 < 100 < line.projected
    assert plane.whole > 1e9  # of all five numbers at once


def values_of(law: Law) -> dict[str, float]:
    return dict(zip(NAMES, law.values(), strict=True))


def points_with(points: Points, loss: np.ndarray) -> Points:
    return Points("made", "made", points.params, points.tokens, points.flops, points.budget, loss)
