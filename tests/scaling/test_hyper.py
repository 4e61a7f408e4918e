"""Laws of learning rate and batch, from rows that differ in these alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from megavideo.scaling.hyper import fit_setting, reduce_settings
from megavideo.scaling.points import Points

SIZES, TOKENS = (1e7, 1e8, 1e9), (1e9, 1e10, 1e11)
Rate = Callable[[float, float], float]


def yin_rate(params: float, tokens: float) -> float:
    """The form and powers of arXiv 2411.17470."""
    return 2e-1 * tokens**-0.0453 * params**-0.1619


def sweep(best: Rate, sizes: tuple[float, ...] = SIZES, tokens: tuple[float, ...] = TOKENS) -> Points:
    """Five rates about the best for each size and number of tokens, at two batches of which the second is better."""
    rows = [
        (n, t, rate, batch, 2.0 + 0.05 * np.log(rate / best(n, t)) ** 2 + (0.1 if batch == 1e5 else 0.0))
        for n in sizes
        for t in tokens
        for batch in (1e5, 2e5)
        for rate in best(n, t) * np.array([0.3, 0.6, 1.1, 2.0, 4.0]) * (1.0 if batch == 2e5 else 3.0)
    ]
    params, count, rate, batch, loss = np.array(rows).T
    flops = 6 * params * count
    return Points("made", "made", params, count, flops, flops, loss, rate, batch)


def test_a_law_of_two_powers() -> None:
    points = sweep(yin_rate)
    law = fit_setting("learning_rate", points, points.learning_rate, points.batch_tokens)
    assert law is not None and len(law.groups) == 9
    assert (law.factor, law.token_power, law.size_power) == pytest.approx((2e-1, -0.0453, -0.1619))
    assert law.spread < 1e-9
    assert law.at(1e9, 1e11) == pytest.approx(yin_rate(1e9, 1e11))


def test_one_power_where_sizes_are_alike() -> None:
    points = sweep(yin_rate, sizes=(1e8,))
    law = fit_setting("learning_rate", points, points.learning_rate, points.batch_tokens)
    assert law is not None and law.size_power is None and law.token_power == pytest.approx(-0.0453)


def test_no_law_of_too_little() -> None:
    points = sweep(yin_rate, sizes=(1e8,), tokens=(1e9, 1e10))
    assert fit_setting("learning_rate", points, points.learning_rate, points.batch_tokens) is None
    together = sweep(yin_rate).take(np.flatnonzero(np.isclose(sweep(yin_rate).tokens, 100 * sweep(yin_rate).params)))
    assert fit_setting("learning_rate", together, together.learning_rate, together.batch_tokens) is None
    edge = sweep(yin_rate)
    low = edge.take(edge.learning_rate < 0.7 * np.array([yin_rate(n, t) for n, t in zip(edge.params, edge.tokens)]))
    assert fit_setting("learning_rate", low, low.learning_rate, low.batch_tokens) is None


def test_laws_of_loss_are_of_the_best_rows() -> None:
    points = sweep(yin_rate)
    best = reduce_settings(points)
    assert len(best) == 9
    for n, t, loss in zip(best.params, best.tokens, best.loss):
        alike = (points.params == n) & (points.tokens == t)
        assert loss == points.loss[alike].min()
