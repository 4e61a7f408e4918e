"""Layouts that are found: legal, fitting, the best of all; and the smallest changes by which a stage fits."""

from __future__ import annotations

import pytest

from megavideo.config.layout import parse_layout
from megavideo.config.load import load
from megavideo.config.schema.plan import PlanRun
from megavideo.config.schema.train import TrainRun
from megavideo.planning.changes import Search, search, smallest_changes
from megavideo.planning.run import train_stages
from megavideo.planning.stage_plan import plan_stage

WORDS = ["run=wan_14b", "cluster=h100_ib", "clip_tokens=37440"]
PACKS = ("data.tokens_per_pack=37440", "train.packs_per_step=64")


def plan_of(*of_training: str, nodes: int = 8) -> PlanRun:
    texts = ",".join(f'"{word}"' for word in of_training)
    return load(PlanRun, "plan", [*WORDS, f"cluster.nodes={nodes}", f"words=[{texts}]"])


@pytest.fixture(scope="module")
def found() -> Search:
    plan = plan_of(*PACKS)
    return search(train_stages(plan)[0], plan)


def test_candidates_are_legal_in_training_and_ordered(found: Search) -> None:
    assert found.candidates > 3000
    assert found.candidates == len(found.ranked) + sum(refused.candidates for refused in found.refused)
    times = [change.step_seconds for change in found.ranked]
    assert times == sorted(times)
    for change in found.ranked[:5] + found.ranked[-5:]:
        words = [word for word in change.words if not word.endswith("kind=none")]
        load(TrainRun, "train", ["run=wan_14b", "data.uri=none", *PACKS, *change.words])
        assert words and change.memory_peak <= 80e9


def test_the_first_one_is_the_best_of_all_that_are_planned_one_by_one(found: Search) -> None:
    best = found.ranked[0]
    for layout in ("tp2-sp-cp4-2d-zero1", "tp4-sp-zero1", "zero3", "cp4-ulysses-zero3", "tp2-sp-zero2"):
        for kind in ("full", "none"):
            plan = plan_of(*PACKS, f"layout={layout}", f"train.recompute.kind={kind}")
            planned = plan_stage(train_stages(plan)[0], plan)
            if planned.fits:
                assert planned.time.total >= best.step_seconds
                same = [c for c in found.ranked if c.words[:2] == (f"layout={layout}", f"train.recompute.kind={kind}")]
                assert [c.step_seconds for c in same] == [pytest.approx(planned.time.total)]


def test_what_does_not_fit_is_told_the_fewest_changes_that_help() -> None:
    plan = plan_of(nodes=32)
    stage = train_stages(plan)[0]
    assert not plan_stage(stage, plan).fits
    changes = smallest_changes(stage, plan)
    assert changes
    before = parse_layout(stage.config.layout)
    for change in changes:
        after = parse_layout(change.words[0].removeprefix("layout="))
        axes = [name for name in ("tp", "cp", "pp", "zero", "offload") if getattr(before, name) != getattr(after, name)]
        assert len(axes) == 1  # one change is enough here
        again = plan_of(*change.words, nodes=32)
        planned = plan_stage(train_stages(again)[0], again)
        assert planned.fits and planned.time.total == pytest.approx(change.step_seconds)
