"""Intervals hold the truth as often as they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from megavideo.scaling.fitting import Fitter, intervals_of, resampled_losses
from megavideo.scaling.law import Law, size_exponent
from tests.scaling.laws import LAWS, SIX_ND, rectangle

NOISE, CONFIDENCE = 0.05, 0.8
FITTER = Fitter("projection", "log", 1e-3)


def quantities(law: Law) -> dict[str, float]:
    return {
        "E": law.E, "A": law.A, "B": law.B, "alpha": law.alpha, "beta": law.beta,
        "size_exponent": size_exponent(law, SIX_ND),
    }  # fmt: skip


def held(law: Law, trial: int, resamples: int) -> list[bool]:
    """Of one noisy study of the law, for each quantity whether its interval holds the truth."""
    rng = np.random.default_rng([trial, LAWS.index(law)])
    exact = rectangle(law)
    points = replace(exact, loss=exact.loss * np.exp(NOISE * rng.standard_normal(len(exact))))
    found = FITTER.fit(points)
    drawn = [
        quantities(FITTER.fit_near(replace(points, loss=loss), found))
        for loss in resampled_losses(points, found, FITTER, resamples, rng)
    ]
    intervals, truth = intervals_of(quantities(found), drawn, CONFIDENCE), quantities(law)
    return [intervals[name].low <= value <= intervals[name].high for name, value in truth.items()]


@pytest.mark.slow
def test_eighty_percent_intervals_hold_eighty_percent() -> None:
    by_law = {law: [held(law, trial, 150) for trial in range(80)] for law in LAWS}
    shares = {law: float(np.mean(rows)) for law, rows in by_law.items()}
    by_quantity = np.concatenate([np.array(rows) for rows in by_law.values()]).mean(0)
    said = f"by law {list(shares.values())}, by quantity {by_quantity.round(3).tolist()}"
    print(said)
    assert 0.75 <= float(np.mean(list(shares.values()))) <= 0.85, said
    assert all(0.70 <= share <= 0.90 for share in (*shares.values(), *by_quantity)), said


def test_intervals_are_drawn_from_the_given_randomness() -> None:
    points = rectangle(LAWS[0], side=4)
    noisy = replace(points, loss=points.loss * np.exp(NOISE * np.random.default_rng(1).standard_normal(len(points))))
    law = FITTER.fit(noisy)

    def drawn(seed: int) -> np.ndarray:
        return np.stack(list(resampled_losses(noisy, law, FITTER, 5, np.random.default_rng(seed))))

    np.testing.assert_array_equal(drawn(3), drawn(3))
    assert not np.array_equal(drawn(3), drawn(4))


def test_an_interval_lies_about_its_value() -> None:
    rows = [{"alpha": 0.3 + step, "A": 10.0 ** (2 + step)} for step in np.linspace(-0.1, 0.3, 41)]
    found = intervals_of({"alpha": 0.3, "A": 100.0}, rows, 0.5)
    assert (found["alpha"].low, found["alpha"].high) == pytest.approx((0.2, 0.4))  # quartiles 0.3 and 0.5
    assert (found["A"].low, found["A"].high) == pytest.approx((10**1.9, 10**2.1))
    assert intervals_of({"alpha": 0.3}, [], 0.5) == {}
    assert intervals_of({"A": 1.0}, [{"A": 0.0}] * 5, 0.5) == {}  # no logarithm
