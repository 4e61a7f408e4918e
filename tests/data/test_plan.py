"""The step plan: every sample once an epoch, the same whatever was asked before, and its errors."""

from __future__ import annotations

from collections import Counter

import pytest

from megavideo.data.packing import PackLimits
from megavideo.data.plan import StepPlan
from megavideo.errors import DataError
from megavideo.types import Grid, PackSegment, SampleInfo

LIMITS = PackLimits(64, 48, 5)
GRIDS = (Grid(1, 8, 8), Grid(3, 4, 6), Grid(5, 4, 4), Grid(2, 12, 4), Grid(1, 2, 4))
Pack = tuple[PackSegment, ...]


def samples(count: int, grids: tuple[Grid, ...] = GRIDS, text_tokens: int = 6) -> list[SampleInfo]:
    return [
        SampleInfo(f"s{i}", i, grids[i % len(grids)], 1 + (i * 7) % text_tokens, 8.0, "caption", "file")
        for i in range(count)
    ]


def make_plan(count: int = 137, packs_per_step: int = 4, seed: int = 0, limits: PackLimits = LIMITS) -> StepPlan:
    return StepPlan(samples(count), (1, 2, 2), limits, packs_per_step, seed)


def epoch_packs(plan: StepPlan, num_epochs: int) -> list[list[Pack]]:
    """Packs of the first epochs, in order, by the visit of their segments."""
    count = sum(plan.packs_in_epoch(epoch) for epoch in range(num_epochs))
    steps = range(-(-count // 4))
    packs = [pack for step in steps for pack in plan.step(step)][:count]
    return [[pack for pack in packs if pack[0].visit == epoch] for epoch in range(num_epochs)]


def test_every_sample_once_an_epoch_and_visits_count_epochs() -> None:
    epochs = epoch_packs(make_plan(), 3)
    for visit, packs in enumerate(epochs):
        assert Counter(s.index for pack in packs for s in pack) == Counter(range(137))
        assert {s.visit for pack in packs for s in pack} == {visit}
    orders = [[s.index for pack in packs for s in pack] for packs in epochs]
    assert orders[0] != orders[1] != orders[2]


def test_epochs_follow_each_other_without_a_gap() -> None:
    plan = make_plan()
    visits = [pack[0].visit for step in range(60) for pack in plan.step(step)]
    assert visits == sorted(visits)
    first_of_second = visits.index(1)
    assert first_of_second == plan.packs_in_epoch(0)
    assert plan.epoch_of(0) == 0
    assert plan.epoch_of(59) == visits[59 * 4]


def test_neighbours_change_between_epochs() -> None:
    first, second, _ = ([{s.index for s in pack} for pack in packs] for packs in epoch_packs(make_plan(), 3))
    assert sum(pack in second for pack in first) < len(first) / 2


def test_a_step_is_pure() -> None:
    forward, jumping = make_plan(), make_plan()
    expected = [forward.step(step) for step in range(70)]
    for step in (69, 3, 40, 0, 68, 3, 11):
        assert jumping.step(step) == expected[step]
    assert make_plan().step(69) == expected[69]
    assert make_plan(seed=1).step(0) != expected[0]


@pytest.mark.parametrize("dp_size", [1, 2, 4])
def test_ranks_share_a_step(dp_size: int) -> None:
    plan = make_plan()
    for step in (0, 5, 33):
        slices = [plan.rank_packs(step, rank, dp_size) for rank in range(dp_size)]
        assert {len(part) for part in slices} == {4 // dp_size}
        assert [pack for part in slices for pack in part] == plan.step(step)


def test_the_packs_of_a_run_do_not_depend_on_packs_per_step() -> None:
    fine, coarse = make_plan(packs_per_step=1), make_plan(packs_per_step=8)
    assert [fine.step(step)[0] for step in range(40)] == [pack for step in range(5) for pack in coarse.step(step)]


def test_budgets_hold() -> None:
    plan = make_plan(limits=PackLimits(64, 20, 3, min_text_tokens=4))
    for step in range(30):
        for pack in plan.step(step):
            assert sum(s.grid.num_tokens for s in pack) <= 64
            assert sum(max(4, s.text_tokens) for s in pack) <= 20
            assert len(pack) <= 3


def test_what_fits_no_pack_is_named_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    many = [*samples(20), SampleInfo("long", 20, Grid(9, 16, 16), 3, 8.0, "", ""),
            SampleInfo("wordy", 21, Grid(1, 4, 4), 49, 8.0, "", "")]  # fmt: skip
    plan = StepPlan(many, (1, 2, 2), LIMITS, 2, 0)
    assert [d.sample_id for d in plan.dropped] == ["long", "wordy"]
    assert "576 video" in plan.dropped[0].reason and "49 text" in plan.dropped[1].reason
    assert "2 of 22 samples fit no pack" in caplog.text and "long" in caplog.text
    seen = {s.sample_id for step in range(20) for pack in plan.step(step) for s in pack}
    assert seen == {f"s{i}" for i in range(20)}


def test_none_fits() -> None:
    with pytest.raises(DataError, match=r"none of the 20 samples fits .*tokens_per_pack=3 .*Remedy"):
        StepPlan(samples(20, (Grid(1, 4, 4),)), (1, 2, 2), PackLimits(3, 48, 5), 2, 0)


def test_too_few_for_one_pack() -> None:
    with pytest.raises(DataError, match=r"12 video tokens in 3 samples: too few .*tokens_per_pack=12 or less"):
        StepPlan(samples(3, (Grid(1, 4, 4),)), (1, 2, 2), LIMITS, 2, 0)
