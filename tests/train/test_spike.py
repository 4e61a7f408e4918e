"""A step whose loss is a spike: what counts as one, and that under every layout it changes nothing on any rank."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from megavideo.parallel.engines.step_loss import StepLoss
from megavideo.parity.spec import ParitySpec
from megavideo.testing.ranks import run_ranks
from megavideo.train.health.spike import SpikeLimit
from megavideo.train.step import squared_error
from tests.train.spike_ranks import compare_gated

FP32 = ParitySpec(heads=4, num_layers=2, tokens=48, packs_per_step=2)
DEEP = ParitySpec(heads=4, num_layers=4, tokens=48, packs_per_step=4)
BF16 = ParitySpec(heads=4, num_layers=2, tokens=48, packs_per_step=2, precision="bf16")
WITH_TERMS = ParitySpec(heads=4, num_layers=2, tokens=48, packs_per_step=2, loss_terms=("temporal_consistency",))

ON_ONE = [(FP32, ["zero0", "zero1"])]
ON_TWO = [
    (FP32, ["dp2-zero3", "tp2-sp-zero1", "cp2-ring", "pp2"]),
    (BF16, ["dp2-zero1"]),
]
ON_FOUR = [(FP32, ["tp2-sp-pp2-zero1"])]
MORE_ON_TWO = [
    (FP32, ["dp2-zero0", "dp2-zero1", "dp2-zero2", "dp2-zero2-offload", "tp2", "cp2-ulysses", "pp2-zero1"]),
    (DEEP, ["pp2-dualpipev"]),
    (BF16, ["dp2-zero2", "dp2-zero3", "tp2-sp-zero1", "pp2-zero1"]),
    (WITH_TERMS, ["cp2-ulysses"]),
]
MORE_ON_FOUR = [
    (FP32, ["pp2-dp2-zero1", "tp2-sp-cp2-ring"]),
    (DEEP, ["cp2-ring-pp2-dualpipev"]),
    (BF16, ["tp2-sp-dp2-zero3"]),
]


def check(found: list[dict[str, Any]], layout: str) -> None:
    """What every rank must tell of a layout."""
    for rank in found:
        plain, gated = rank[layout]["plain"], rank[layout]["gated"]
        one, spike, again, applied, last = gated["rows"]
        assert plain["losses"][1] != plain["losses"][0]
        for row in (spike, again):
            assert row["spike"] and not row["applied"] and not row["moved"] and row["suspects"] > 0
            assert row["loss"] == plain["losses"][1] and math.isinf(row["grad_norm"])
        for row in (one, applied, last):
            assert row["applied"] and not row["spike"] and row["moved"] and row["suspects"] == 0
        # bit for bit what it would have been had the gate never shut: no gradient of the skipped step was left
        assert [row["loss"] for row in (one, applied, last)] == plain["losses"]
        assert gated["state"] == plain["state"]


@pytest.mark.parametrize(
    ("processes", "cases"),
    [
        pytest.param(1, ON_ONE, id="one"),
        pytest.param(2, ON_TWO, id="two"),
        pytest.param(4, ON_FOUR, id="four"),
        pytest.param(2, MORE_ON_TWO, id="more-two", marks=pytest.mark.slow),
        pytest.param(4, MORE_ON_FOUR, id="more-four", marks=pytest.mark.slow),
    ],
)
def test_a_spike_is_skipped_on_every_rank_and_leaves_nothing(
    tmp_path: Path, processes: int, cases: list[tuple[ParitySpec, list[str]]]
) -> None:
    for number, (spec, layouts) in enumerate(cases):
        found = run_ranks(compare_gated, (spec, layouts), tmp_path / str(number), processes=processes)
        for layout in layouts:
            check(found, layout)


def step_loss(limit: float | None, micro_steps: int = 2) -> StepLoss:
    """Of one process without groups: a collective would fail."""
    return StepLoss(squared_error, None, None, micro_steps, 0.5, limit)  # type: ignore[arg-type]


def test_without_a_limit_nothing_is_communicated() -> None:
    loss = step_loss(None)
    for error in (1.0, 3.0):
        total = loss.add(torch.full((2, 4), error), torch.zeros(2, 4), torch.ones(2))
        assert float(total) == pytest.approx(0.5 * 2 * error**2)
    assert not loss.spike


def test_only_the_last_micro_batch_is_spoiled() -> None:
    loss = step_loss(1.0)
    first = loss.add(torch.full((2, 4), 9.0), torch.zeros(2, 4), torch.ones(2))
    assert math.isfinite(float(first)) and not loss.spike


def test_the_limit_is_a_multiple_of_the_median_of_the_last_losses() -> None:
    limit = SpikeLimit(3.0, 10)
    for number in range(8):
        assert limit.limit is None
        limit.add(1.0 + number % 2, applied=True)
    assert limit.limit == pytest.approx(4.5)
    for _ in range(9):
        limit.add(0.5, applied=True)
    assert limit.limit == pytest.approx(1.5) and len(limit.state) == 10
    limit.add(100.0, applied=True)  # one outlier does not move a median
    assert limit.limit == pytest.approx(1.5)


def test_skipped_and_non_finite_losses_do_not_count() -> None:
    limit = SpikeLimit(2.0, 8, [1.0] * 8)
    before = limit.state
    limit.add(50.0, applied=False)
    limit.add(math.nan, applied=True)
    limit.add(math.inf, applied=True)
    assert limit.state == before and limit.limit == 2.0


def test_a_limit_goes_on_from_its_state() -> None:
    limit, other = SpikeLimit(2.0, 9), SpikeLimit(5.0, 9)
    for number in range(20):
        limit.add(float(number), applied=True)
    again = SpikeLimit(2.0, 9, limit.state)
    assert again.limit == limit.limit == 2.0 * 15
    assert other.limit is None
    assert SpikeLimit(2.0, 8, limit.state).state == limit.state[1:]  # a shorter window keeps the newest
