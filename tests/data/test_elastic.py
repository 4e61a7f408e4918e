"""Elastic exactness: a run that is stopped and started again with other numbers of ranks sees the same data."""

from __future__ import annotations

import copy
import random
from collections import Counter

import pytest

from megavideo.data.plan.packing import PackLimits
from megavideo.data.plan.step_plan import PlanSettings, rank_share
from megavideo.testing.plan import plan_of
from megavideo.types import Grid, SampleInfo

CHANGES = 20
Visits = Counter[tuple[str, int]]


def samples(count: int, seed: int) -> list[SampleInfo]:
    """Images and videos of many sizes, from two sources."""
    draw = random.Random(seed)
    return [
        SampleInfo(
            f"s{i}", i, Grid(draw.choice((1, 1, 2, 3, 5)), 2 * draw.randint(1, 6), 2 * draw.randint(1, 6)),
            draw.randint(1, 20), 8.0, "", draw.choice(("web/x", "film/y")),
        )
        for i in range(count)
    ]  # fmt: skip


class Job:
    """One start of a run: each data-parallel rank plans by itself, with a plan of its own in each of its workers."""

    def __init__(self, infos: list[SampleInfo], settings: PlanSettings, dp: int, workers: int) -> None:
        self._dp, self._workers = dp, max(1, workers)
        fresh = plan_of(infos, settings)
        self._plans = [[copy.deepcopy(fresh) for _ in range(self._workers)] for _ in range(dp)]

    def run(self, begin: int, end: int, made_ahead: int) -> dict[int, Visits]:
        """What steps [begin, end) trained on; workers take steps in turn, and have made some that no one trains."""
        seen: dict[int, Visits] = {step: Counter() for step in range(begin, end)}
        for rank, plans in enumerate(self._plans):
            for worker, plan in enumerate(plans):
                for step in range(begin + worker, end + made_ahead, self._workers):
                    mine = rank_share(plan.step(step), rank, self._dp)
                    if step < end:
                        seen[step].update((s.sample_id, s.visit) for pack in mine for s in pack)
        return seen


@pytest.mark.parametrize(
    ("packs_per_step", "ranks", "count", "weights"),
    [
        (24, (1, 2, 3, 4, 6, 8), 9000, None),
        (35, (1, 5, 7), 9000, {"film/*": 0.5}),
        (8, (1, 2, 4, 8), 90, {"image": 2}),
    ],
)
def test_twenty_changes_over_three_epochs(
    packs_per_step: int, ranks: tuple[int, ...], count: int, weights: dict[str, float] | None
) -> None:
    draw = random.Random(packs_per_step)
    infos = samples(count, packs_per_step)
    settings = PlanSettings((1, 2, 2), PackLimits(192, 400, 60), packs_per_step, seed=3, weights=weights)
    whole = plan_of(infos, settings)
    epochs = 3 if whole.passes_per_cycle < 3 else whole.passes_per_cycle
    steps = -(-whole.packs_per_cycle * epochs // whole.passes_per_cycle // packs_per_step)
    expected = {
        step: Counter((s.sample_id, s.visit) for pack in whole.step(step) for s in pack) for step in range(steps)
    }
    stops = sorted(draw.sample(range(1, steps), CHANGES))
    elastic: dict[int, Visits] = {}
    for begin, end in zip([0, *stops], [*stops, steps], strict=True):
        dp, workers = draw.choice(ranks), draw.randint(0, 4)
        elastic |= Job(infos, settings, dp, workers).run(begin, end, draw.randint(0, 9))
    assert elastic == expected
    total = sum(expected.values(), Counter())
    assert max(total.values()) == 1  # none twice
    visits = Counter(sample_id for sample_id, _ in total)
    assert visits.keys() == {info.sample_id for info in infos}  # none lost
    if weights is None:
        assert {(info.sample_id, visit) for info in infos for visit in range(3)} <= total.keys()
