"""Learning rates step by step."""

from __future__ import annotations

import math

import pytest

from megavideo.config.schema.optim import OptimConfig
from megavideo.optim.schedule import learning_rate


def rates(config: OptimConfig, num_steps: int) -> list[float]:
    return [learning_rate(config, step, num_steps) for step in range(num_steps)]


def test_constant_with_warm_up() -> None:
    values = rates(OptimConfig(lr=1e-3, warmup_steps=4), 10)
    assert values == pytest.approx([2.5e-4, 5e-4, 7.5e-4] + [1e-3] * 7)
    assert rates(OptimConfig(lr=1e-3), 3) == [1e-3] * 3


def test_cosine() -> None:
    config = OptimConfig(lr=2e-3, warmup_steps=10, schedule="cosine", min_lr_ratio=0.1)
    values = rates(config, 110)
    assert values[0] == pytest.approx(2e-4)
    assert values[10] == max(values) == pytest.approx(2e-3)
    assert values[60] == pytest.approx(2e-3 * (0.1 + 0.9 / 2))
    assert values[35] == pytest.approx(2e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))))
    assert values[10:] == sorted(values[10:], reverse=True)
    assert learning_rate(config, 110, 110) == pytest.approx(2e-4)
    assert learning_rate(config, 500, 110) == pytest.approx(2e-4)


def test_stable_then_a_straight_fall() -> None:
    config = OptimConfig(lr=1e-3, warmup_steps=2, schedule="wsd", min_lr_ratio=0.2, decay_steps=4)
    assert rates(config, 10) == pytest.approx([5e-4] + [1e-3] * 6 + [8e-4, 6e-4, 4e-4])
    assert learning_rate(config, 10, 10) == pytest.approx(2e-4)
    assert learning_rate(config, 99, 10) == pytest.approx(2e-4)
    whole = OptimConfig(lr=1e-3, schedule="wsd", min_lr_ratio=0.0, decay_steps=4)
    assert rates(whole, 4) == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_a_stable_run_is_that_of_any_length() -> None:
    """Up to the fall of the shorter: from there one run gives several budgets."""
    config = OptimConfig(lr=1e-3, warmup_steps=5, schedule="wsd", min_lr_ratio=0.0, decay_steps=10)
    short, long = rates(config, 50), rates(config, 200)
    assert short[:41] == long[:41]
    assert short[41] < long[41] == 1e-3
