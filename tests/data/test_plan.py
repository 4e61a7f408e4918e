"""The step plan: every sample once an epoch, the same whatever was asked before, and its errors."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from megavideo.data.plan.packing import PackLimits
from megavideo.data.plan.recipe import _ITEMS
from megavideo.data.plan.step_plan import Pack, PlanSettings, StepPlan, rank_share
from megavideo.data.table.sample_table import SampleTable, check_sources, make_table
from megavideo.errors import DataError
from megavideo.testing.plan import plan_of
from megavideo.types import Grid, PackSegment, SampleInfo

LIMITS = PackLimits(64, 48, 5)
GRIDS = (Grid(1, 8, 8), Grid(3, 4, 6), Grid(5, 4, 4), Grid(2, 12, 4), Grid(1, 2, 4))


def samples(count: int, grids: tuple[Grid, ...] = GRIDS, sources: tuple[str, ...] = ("file",)) -> list[SampleInfo]:
    return [
        SampleInfo(f"s{i}", i, grids[i % len(grids)], 1 + (i * 7) % 6, 8.0, "", sources[i % len(sources)])
        for i in range(count)
    ]


def settings(packs_per_step: int = 4, **given: Any) -> PlanSettings:
    return PlanSettings(**{"patch": (1, 2, 2), "limits": LIMITS, "packs_per_step": packs_per_step, "seed": 0, **given})


def make_plan(count: int = 137, packs_per_step: int = 4, **given: Any) -> StepPlan:
    return plan_of(samples(count), settings(packs_per_step, **given))


def cycle_segments(plan: StepPlan, packs_per_step: int = 1) -> list[PackSegment]:
    """All segments of the first cycle, in order."""
    steps = -(-plan.packs_per_cycle // packs_per_step)
    packs = [pack for step in range(steps) for pack in plan.step(step)][: plan.packs_per_cycle]
    return [segment for pack in packs for segment in pack]


def visit_counts(plan: StepPlan) -> Counter[tuple[int, int]]:
    return Counter((s.index, s.visit) for s in cycle_segments(plan))


@pytest.mark.parametrize(
    ("count", "weights", "digest"),
    [
        (9000, None, "99860a111d6a6b93"),
        (9000, {"film/*": 0.5}, "6e99a495bc76eee3"),
        (90, {"image": 2}, "0a636d44992d7286"),
    ],
)
def test_plans_of_runs_that_are_under_way_stay_as_they_are(
    count: int, weights: Mapping[str, float] | None, digest: str
) -> None:
    """A run that goes on with a later version of the code finds its plan: the digests are of plans made before."""
    draw = random.Random(5)
    infos = [
        SampleInfo(f"s{i}", i, Grid(draw.choice((1, 1, 2, 3, 5)), 2 * draw.randint(1, 6), 2 * draw.randint(1, 6)),
                   draw.randint(1, 20), 8.0, "", draw.choice(("web/x", "film/y")))
        for i in range(count)
    ]  # fmt: skip
    plan = plan_of(infos, settings(8, limits=PackLimits(192, 400, 60), seed=3, weights=weights))
    found = hashlib.sha256()
    for step in (0, 1, 7, 40, 333, 5000):
        for pack in plan.step(step):
            rows = [(s.index, s.sample_id, s.visit, s.grid.t, s.grid.h, s.grid.w, s.text_tokens) for s in pack]
            found.update(repr(rows).encode())
    assert found.hexdigest()[:16] == digest


@pytest.mark.parametrize("count", [1, 2, 10, 137, 3000])
def test_every_sample_once_each_pass(count: int) -> None:
    plan = make_plan(count, 1)
    passes = plan.passes_per_cycle
    assert visit_counts(plan) == Counter((i, visit) for i in range(count) for visit in range(passes))
    assert (passes == 1) == (count == 3000)


def test_counts_divided_before_they_are_packed_lose_nothing() -> None:
    count = _ITEMS + 1234
    plan = make_plan(count, 1, limits=PackLimits(640, 480, 50))
    assert plan.passes_per_cycle == 1
    assert visit_counts(plan) == Counter((i, 0) for i in range(count))


def test_cycles_follow_each_other_and_visits_go_on() -> None:
    plan = make_plan(packs_per_step=1)
    passes, packs = plan.passes_per_cycle, plan.packs_per_cycle
    second = [s for step in range(packs, 2 * packs) for pack in plan.step(step) for s in pack]
    assert Counter((s.index, s.visit) for s in second) == Counter(
        (i, visit) for i in range(137) for visit in range(passes, 2 * passes)
    )
    assert plan.epoch_of(0) == 0 and plan.epoch_of(packs) == passes
    epochs = [plan.epoch_of(step) for step in range(2 * packs)]
    assert epochs == sorted(epochs) and set(epochs) == set(range(2 * passes))


def test_no_sample_runs_ahead_of_the_others() -> None:
    plan = make_plan(packs_per_step=1)
    seen: Counter[int] = Counter(dict.fromkeys(range(137), 0))
    for step in range(plan.packs_per_cycle):
        for segment in plan.step(step)[0]:
            assert segment.visit == seen[segment.index]  # none is left out, and none comes again
            seen[segment.index] += 1
        assert max(seen.values()) - min(seen.values()) <= 2


def test_ten_clips_fill_packs_with_consecutive_visits() -> None:
    clips = [SampleInfo(f"c{i}", i, Grid(1 + i % 3, 4, 2 + 2 * (i // 5)), 3, 8.0, "", "") for i in range(10)]
    plan = plan_of(clips, settings(8, limits=PackLimits(256, 1000, 256)))
    for step in range(40):
        packs = plan.step(step)
        assert len(packs) == 8
        segments = [s for pack in packs for s in pack]
        assert len({(s.index, s.visit) for s in segments}) == len(segments)
        assert {s.index for s in segments} == set(range(10))
    assert fill(plan, 256, 40) > 0.98


def fill(plan: StepPlan, tokens: int, steps: int) -> float:
    packs = [pack for step in range(steps) for pack in plan.step(step)]
    return sum(s.grid.num_tokens for pack in packs for s in pack) / len(packs) / tokens


def test_neighbours_change_between_visits() -> None:
    plan = make_plan(packs_per_step=1, limits=PackLimits(64, 100, 5))
    together: dict[int, set[frozenset[int]]] = {}
    for step in range(plan.packs_per_cycle):
        for pack in plan.step(step):
            for segment in pack:
                together.setdefault(segment.visit, set()).add(frozenset(s.index for s in pack if len(pack) > 1))
    assert len(together[0] & together[1]) < len(together[0]) / 2


def test_a_step_is_pure() -> None:
    forward, jumping = make_plan(), make_plan()
    expected = [forward.step(step) for step in range(200)]
    for step in (199, 3, 40, 0, 168, 3, 11):
        assert jumping.step(step) == expected[step]
    assert make_plan().step(69) == expected[69]
    assert make_plan(seed=1).step(0) != expected[0]
    assert make_plan(stage=1).step(0) != expected[0]
    assert plan_of(reversed(samples(137)), settings()).step(5) == expected[5]  # the order of the lines does not matter


def test_a_stage_begins_at_a_step_and_a_visit() -> None:
    whole, later = make_plan(stage=2), make_plan(stage=2, first_step=1000, first_visit=7)
    for step in (0, 3, 168):
        moved = [[replace(s, visit=s.visit + 7) for s in pack] for pack in whole.step(step)]
        assert [list(pack) for pack in later.step(1000 + step)] == moved
        assert later.epoch_of(1000 + step) == whole.epoch_of(step) + 7
    for ask in (later.step, later.epoch_of, later.visits_reached):
        with pytest.raises(ValueError, match="step 999 is before the stage, which begins at 1000"):
            ask(999)


@pytest.mark.parametrize(
    ("count", "weights", "items"), [(3, None, _ITEMS), (137, {"video": 3}, _ITEMS), (900, None, 256)]
)
def test_visits_of_the_next_stage_are_new(
    count: int, weights: Mapping[str, float] | None, items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megavideo.data.plan.recipe._ITEMS", items)
    plan = make_plan(count, weights=weights, first_step=5, first_visit=2)
    assert plan.visits_reached(5) == 2
    seen: set[tuple[int, int]] = set()
    end = 45
    for step in range(5, end):
        seen |= {(s.index, s.visit) for pack in plan.step(step) for s in pack}
        reached = plan.visits_reached(step + 1)
        assert reached > max(visit for _, visit in seen)
        # no more are passed over than the rounds that were touched may hold
        assert reached <= 2 + plan.passes_per_cycle * (1 + (step - 5 + 1) * 4 // plan.packs_per_cycle)
    after = make_plan(count, weights=weights, stage=1, first_step=end, first_visit=plan.visits_reached(end))
    again = {(s.index, s.visit) for step in range(end, end + 30) for pack in after.step(step) for s in pack}
    assert not seen & again


def test_visits_reached_are_tight_where_passes_are_short() -> None:
    plan = make_plan(10, 1, limits=PackLimits(640, 480, 50))
    most = 0
    for step in range(40):
        most = max(most, *(s.visit for pack in plan.step(step) for s in pack))
        assert most < plan.visits_reached(step + 1) <= most + 4


def test_ranks_share_a_step() -> None:
    plan = make_plan(packs_per_step=24)
    for dp_size in (1, 2, 3, 4, 6, 8, 12, 24):
        parts = [rank_share(plan.step(3), rank, dp_size) for rank in range(dp_size)]
        assert {len(part) for part in parts} == {24 // dp_size}
        assert sorted(map(ids, (pack for part in parts for pack in part))) == sorted(map(ids, plan.step(3)))


def ids(pack: Pack) -> list[tuple[str, int]]:
    return [(s.sample_id, s.visit) for s in pack]


def test_the_packs_of_a_run_do_not_depend_on_packs_per_step() -> None:
    fine, coarse = make_plan(packs_per_step=1), make_plan(packs_per_step=8)
    assert [fine.step(step)[0] for step in range(40)] == [pack for step in range(5) for pack in coarse.step(step)]


def test_budgets_hold() -> None:
    plan = make_plan(limits=PackLimits(64, 20, 3, min_text_tokens=4))
    assert plan.max_segments <= 3
    for step in range(60):
        for pack in plan.step(step):
            assert sum(s.grid.num_tokens for s in pack) <= 64
            assert sum(max(4, s.text_tokens) for s in pack) <= 20
            assert len(pack) <= 3


def test_the_data_asks_for_segments() -> None:
    free = make_plan(4000, limits=PackLimits(640, 4000, 640))
    packs = [pack for step in range(200) for pack in free.step(step)]
    assert max(map(len, packs)) <= free.max_segments < 640
    assert fill(free, 640, 60) > 0.98
    assert fill(make_plan(4000, limits=PackLimits(640, 4000, 20)), 640, 40) < 0.9  # what too few cost


def test_steps_are_full_and_ranks_cost_alike() -> None:
    """Videos of 256 to 512 pixels and 5 to 65 frames, one pack a rank; cost as of a 1.3B DiT."""
    rng = np.random.default_rng(0)
    sides = 2 * np.rint(np.exp(rng.uniform(np.log(16), np.log(32), (9000, 2)))).astype(int)
    sizes = np.column_stack([rng.integers(2, 18, 9000), sides]).tolist()
    clips = [SampleInfo(f"s{i}", i, Grid(*size), 20 + i % 200, 8.0, "", "") for i, size in enumerate(sizes)]
    plan = plan_of(clips, settings(8, limits=PackLimits(75_600, 16_384, 16_384)))
    steps = [plan.step(step) for step in range(plan.packs_per_cycle // 8)]
    cost = np.array([[sum(n + 7.4e-5 * n * n for n in map(tokens_of, pack)) for pack in step] for step in steps])
    assert (cost.mean(axis=1) / cost.max(axis=1)).mean() > 0.98
    assert fill(plan, 75_600, len(steps)) > 0.985


def tokens_of(segment: PackSegment) -> int:
    return segment.grid.num_tokens


@pytest.mark.parametrize(
    ("weights", "visits"),
    [
        ({"a/*": 2}, (2, 1, 1)),
        ({"a/*": 0.5, "b/*": 1.5}, (1, 3, 2)),
        ({"a/*": 0}, (0, 1, 1)),
        ({"image": 3, "a/*": 1}, (1, 1, 1)),
        ({"video": 3, "a/*": 1}, (3, 3, 3)),
        ({"a/*": 0.375}, (3, 8, 8)),
    ],
)
def test_weights_of_sources(weights: Mapping[str, float], visits: tuple[int, int, int]) -> None:
    """Videos of sources a, b and c: how often each is seen, and images 3 times as often where that is said."""
    grids = (Grid(2, 4, 4), Grid(3, 4, 4), Grid(1, 8, 4), Grid(2, 8, 4))
    plan = plan_of(samples(240, grids, ("a/x", "b/y", "c/z")), settings(1, weights=weights))
    seen = visit_counts(plan)
    whole = plan.passes_per_cycle // max(max(visits), 3 if "image" in weights else 1)
    for index in range(240):
        image, source = index % 4 == 2, index % 3
        each = visits[source] * whole
        if "image" in weights and image:
            each *= 3
        if "video" in weights and image:
            each //= 3
        assert {visit for i, visit in seen if i == index} == set(range(each))
    assert max(seen.values()) == 1


def test_weights_hold_within_a_cycle() -> None:
    plan = plan_of(samples(90, sources=("a", "b")), settings(1, weights={"a": 0.25}))
    half = [s for step in range(plan.packs_per_cycle // 2) for pack in plan.step(step) for s in pack]
    share = sum(s.index % 2 == 0 for s in half) / len(half)
    assert share == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("weights", [{"a": 1200.0}, {"a": 0.0008}, {"a": 3000.0, "b": 0.5}])
def test_weights_that_would_count_for_more_than_they_say(weights: Mapping[str, float]) -> None:
    with pytest.raises(DataError, match=r"data\.sources: weights from .* are more than 1000 times apart\. Remedy"):
        plan_of(samples(90, sources=("a", "b")), settings(1, weights=weights))
    plan_of(samples(90, sources=("a", "b")), settings(1, weights={"a": 1000.0}))  # as far as it goes


def test_a_source_that_no_sample_has() -> None:
    with pytest.raises(DataError, match=r"data.sources: no sample is of film, image\. .*Remedy"):
        check_sources(make_table(samples(20, (Grid(2, 4, 4),)), ("file", "film", "image")))


def test_what_fits_no_pack_is_named_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    many = [*samples(20), SampleInfo("long", 20, Grid(9, 16, 16), 3, 8.0, "", ""),
            SampleInfo("wordy", 21, Grid(1, 4, 4), 49, 8.0, "", "")]  # fmt: skip
    plan = plan_of(many, settings(2))
    found = {d.sample_id: d.reason for d in plan.dropped.first}
    assert plan.dropped.count == 2
    assert found.keys() == {"long", "wordy"}
    assert "576 video" in found["long"] and "49 text" in found["wordy"]
    assert "2 of 22 samples fit no pack" in caplog.text and "long" in caplog.text
    seen = {s.sample_id for step in range(20) for pack in plan.step(step) for s in pack}
    assert seen == {f"s{i}" for i in range(20)}


def test_none_fits() -> None:
    with pytest.raises(DataError, match=r"none of the 20 samples fits .*tokens_per_pack=3 .*Remedy"):
        plan_of(samples(20, (Grid(1, 4, 4),)), settings(limits=PackLimits(3, 48, 5)))
    with pytest.raises(DataError, match="leaves out all 20 samples"):
        plan_of(samples(20), settings(weights={"file": 0}))


def test_a_billion_samples_at_once() -> None:
    """No table as long as the data is made: the rows here are all of one sample, which is seen a billion times."""
    count = 10**9
    sizes = np.unique(np.geomspace(256, 4096, 400).astype(int) * 4)
    begin = np.linspace(0, count, len(sizes) + 1).astype(np.int64)
    table = SampleTable(
        groups=("",),
        index=np.broadcast_to(np.int64(0), count),
        latent=np.array([[1, 2, 2]], np.int32),
        text=np.array([9], np.int32),
        pixels=np.array([[1, 16, 16]], np.int32),
        fps=np.array([8.0]),
        id_begin=np.array([0, 0]),
        id_bytes=np.zeros(0, np.uint8),
        id_hash=np.zeros(1, np.uint64),
        run_begin=begin,
        run_group=np.zeros(len(sizes), np.int64),
        run_volume=sizes,
    )
    plan = StepPlan(table, settings(8, limits=PackLimits(32_768, 32_768, 1000)))
    assert plan.passes_per_cycle == 1
    real = int((np.diff(begin) * sizes // 4).sum())
    assert real / 32_768 / plan.packs_per_cycle > 0.98
    last = plan.packs_per_cycle // 8
    for step in (0, last // 3, last + 1, 10 * last):
        rows = [s for pack in plan.step(step) for s in pack]
        assert len(rows) > 100 and {s.visit for s in rows} <= {step // last, (step - 1) // last}
