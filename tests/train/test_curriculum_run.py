"""A run through the stages of a curriculum: every change of layout exact, in one start or in one for each stage."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import yaml

from megavideo.checkpoint.manifest import list_checkpoints, read_manifest
from megavideo.testing.dataset import write_dataset
from megavideo.testing.ranks import run_ranks
from megavideo.testing.train_cases import Case, Outcome, run_cases
from megavideo.types import Grid
from tests.train.conftest import Place, Runs
from tests.train.stage_ranks import Left, left_after_each

NAMES = ("images_256", "short_256", "medium_512", "long_1024", "multimodal")
LAYOUTS = ("dp2-zero3", "tp2-zero1", "tp2-sp-zero1", "cp2-ring-zero1", "pp2-zero1")
STEPS = 4
TOLERANCE = 1e-5
WORDS = ("curriculum=small", f"train.steps={STEPS}", "optim.warmup_steps=1", "checkpoint.every=3")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("curriculum"))
    grids = (Grid(2, 4, 4), Grid(1, 6, 4), Grid(3, 4, 4))
    write_dataset(str(place.latents), 16, grids=grids)
    write_dataset(str(place.root / "hopeless"), 4, grids=grids, bad=dict.fromkeys(range(4), math.nan))
    return place


def words(there: Place, name: str, *more: str, **settings: Any) -> list[str]:
    given = {"train__packs_per_step": 2, **settings}
    own = [word for word in there.words(name, **given) if word.split("=")[0] not in {w.split("=")[0] for w in WORDS}]
    return [*own, *WORDS, *more]


def words_of_two(there: Place, name: str, *more: str) -> list[str]:
    layouts = (f"stages.{stage}.layout={layout}" for stage, layout in zip(NAMES, LAYOUTS, strict=True))
    return [*words(there, name), *layouts, *more]


@pytest.fixture(scope="module")
def alone(there: Place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Outcome]]:
    cases = {
        "alone": Case(words(there, "alone", "layout=zero1")),
        "nothing left": Case(words(there, "alone", "layout=zero1")),
        "gone on": Case(words(there, "alone", "layout=zero1", "stage=2")),
        # its second stage never makes a step; the end of the first one is not kept, and step 3 is
        "falls back": Case(
            [
                *words(there, "falls back", "layout=zero1", f"stages.short_256.data.uri={there.root / 'hopeless'}"),
                "guard.max_skipped=3",
                "checkpoint.keep_last=1",
                "checkpoint.keep_every=3",
                "checkpoint.keep_stage_ends=false",
            ]
        ),
    }
    return dict(zip(cases, run_cases(list(cases.values()), tmp_path_factory.mktemp("one"), processes=1), strict=True))


@pytest.fixture(scope="module")
def together(there: Place, tmp_path_factory: pytest.TempPathFactory) -> list[list[Left]]:
    """All stages in one start: what each rank still held after each of them."""
    arguments = (words_of_two(there, "together"),)
    return run_ranks(left_after_each, arguments, tmp_path_factory.mktemp("together"), processes=2)


@pytest.fixture(scope="module")
def on_two(there: Place, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    cases = {f"stage {number}": Case(words_of_two(there, "apart", f"stage={number}")) for number in range(1, 6)}
    cases["too early"] = Case(words_of_two(there, "early", "stage=1", "exit.samples=2"))
    return Runs(cases, frozenset({"too early"}), tmp_path_factory.mktemp("two"), 2)


def stage_rows(there: Place, name: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (there.run(name) / "stages.jsonl").read_text().splitlines()]
    return [row for row in rows if row["last_step"] is not None]


def test_all_stages_run_one_after_the_other(there: Place, alone: dict[str, list[Outcome]]) -> None:
    report = alone["alone"][0].report
    assert report is not None and report["steps"] == 5 * STEPS and tuple(report["stages"]) == NAMES
    rows = stage_rows(there, "alone")
    assert [(row["name"], row["first_step"], row["last_step"]) for row in rows] == [
        (name, number * STEPS + 1, (number + 1) * STEPS) for number, name in enumerate(NAMES)
    ]
    assert [row["stage"] for row in there.rows("alone")] == [name for name in NAMES for _ in range(STEPS)]


def test_a_run_whose_stages_are_all_done_trains_nothing(alone: dict[str, list[Outcome]]) -> None:
    report = alone["nothing left"][0].report
    assert report is not None and report["resumed_at"] == report["steps"] == 5 * STEPS
    assert list(report["stages"]) == []


def check_changes(there: Place, alone: dict[str, list[Outcome]], name: str) -> None:
    assert alone["alone"][0].error is None
    assert [row["layout"] for row in stage_rows(there, name)] == list(LAYOUTS)
    assert there.losses(name) == pytest.approx(there.losses("alone"), rel=TOLERANCE)


def test_each_change_of_layout_is_exact(
    there: Place, alone: dict[str, list[Outcome]], together: list[list[Left]]
) -> None:
    assert len(together) == 2
    check_changes(there, alone, "together")


@pytest.mark.slow
def test_so_it_is_in_a_start_for_each_stage(there: Place, alone: dict[str, list[Outcome]], on_two: Runs) -> None:
    errors = [outcome.error for number in range(1, 6) for outcome in on_two[f"stage {number}"]]
    assert errors == [None] * 10
    check_changes(there, alone, "apart")


def test_stages_shuffle_otherwise_and_continue_the_visits(there: Place, alone: dict[str, list[Outcome]]) -> None:
    assert alone["alone"][0].error is None
    ends = [read_manifest(folder) for folder in list_checkpoints(there.run("alone") / "checkpoints")]
    ends = [manifest for manifest in ends if manifest.stage_end]
    assert [manifest.progress["stage"] for manifest in ends] == list(NAMES)
    firsts = [manifest.progress["first_visit"] for manifest in ends]
    nexts = [manifest.progress["next_visit"] for manifest in ends]
    assert firsts == [0, *nexts[:-1]]
    assert all(low < high for low, high in zip(firsts, nexts, strict=True))


def test_a_stage_may_end_by_its_samples(there: Place, on_two: Runs) -> None:
    report = on_two["too early"][0].report
    assert report is not None and report["steps"] == 1
    assert read_manifest(list_checkpoints(there.run("early") / "checkpoints")[-1]).progress["finished"] == "samples"


def test_a_stage_that_is_behind_the_run_is_refused(there: Place, alone: dict[str, list[Outcome]]) -> None:
    (outcome,) = alone["gone on"]
    assert outcome.error == "ConfigError"
    assert "has gone on to stage 5" in outcome.message


def test_the_checkpoint_of_a_stages_end_stays(there: Place, together: list[list[Left]]) -> None:
    left = [path.name for path in list_checkpoints(there.run("together") / "checkpoints")]
    assert {f"step_{(number + 1) * STEPS:08d}" for number in range(5)} <= set(left)


def test_the_folder_tells_of_all_stages(there: Place, alone: dict[str, list[Outcome]]) -> None:
    assert alone["alone"][0].error is None
    values = yaml.safe_load((there.run("alone") / "config.yaml").read_text())
    assert values["stage"] == NAMES[-1] and values["train"]["steps"] == STEPS
    assert values["stages"] == {name: {"train": {"steps": STEPS}} for name in NAMES}


def test_a_stage_leaves_no_groups_and_no_engine_to_the_next(together: list[list[Left]]) -> None:
    for stages in together:
        for layout, left in zip(LAYOUTS, stages, strict=True):
            assert left["num_groups_during"] > left["num_groups_after"] == 1, layout  # that of all ranks
            assert not any(left["alive"].values()), layout


def test_going_back_into_a_stage_that_was_not_finished_ends_the_run(
    there: Place, alone: dict[str, list[Outcome]]
) -> None:
    (outcome,) = alone["falls back"]
    assert outcome.error == "NumericsError"
    assert "of step 3, is from the middle of stage 1, images_256" in outcome.message
    left = [path.name for path in list_checkpoints(there.run("falls back") / "checkpoints")]
    assert left == ["step_00000003"]  # from which the same command trains on
