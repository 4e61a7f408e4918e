"""After steps in a row that fail, a run goes back and passes over their data; a run asked to stop saves itself."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from megavideo.testing.dataset import write_dataset
from megavideo.testing.settings import micro_config
from megavideo.testing.train_cases import Case
from megavideo.train.rollback import nothing_before, too_often
from megavideo.types import Grid
from tests.train.conftest import Place, Runs, slow_but

BAD = 3
STEPS = 9
LAYOUTS = ("dp2-zero1", "tp2-sp-zero1", "pp2-zero1", "dp2-zero3")
QUICK = ("dp2-zero1", "pp2-zero1")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("rollback"))
    write_dataset(str(place.latents), 8, grids=(Grid(2, 4, 4), Grid(1, 6, 4)), bad={BAD: math.inf})
    return place


def words(there: Place, name: str, **settings: Any) -> list[str]:
    small = {"data__tokens_per_pack": 16, "data__max_segments": 2, "train__steps": STEPS, "checkpoint__every": 1}
    return there.words(name, **{**small, "checkpoint__keep_last": 100, **settings})


@pytest.fixture(scope="module")
def on_two(there: Place, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    cases = {}
    for layout in LAYOUTS:
        skipping = words(there, f"skips {layout}", layout=layout)
        going_back = words(there, f"back {layout}", layout=layout, guard__max_skipped=1, guard__max_rollbacks=9)
        cases |= {f"skips {layout}": Case(skipping), f"back {layout}": Case(going_back)}
    few = words(there, "few", layout="dp2-zero1", guard__max_skipped=1, guard__max_rollbacks=0)
    cases["few"] = Case(few)
    cases["unsaved"] = Case(words(there, "unsaved", layout="dp2-zero1", guard__max_skipped=1, checkpoint__every=1000))
    bad = there.run(f"skips {LAYOUTS[0]}") / "bad_samples.txt"
    cases["without"] = Case(words(there, "without", layout="dp2-zero1", guard__exclude=f'"{bad}"'))
    slow = {f"{kind} {layout}" for kind in ("skips", "back") for layout in LAYOUTS if layout not in QUICK}
    return Runs(cases, frozenset(cases) - slow, tmp_path_factory.mktemp("two"), 2)


@pytest.mark.parametrize("layout", slow_but(LAYOUTS, QUICK))
def test_going_back_leads_to_what_skipping_does(there: Place, on_two: Runs, layout: str) -> None:
    skipped, back = on_two[f"skips {layout}"][0].report, on_two[f"back {layout}"][0].report
    assert skipped is not None and back is not None
    assert skipped["skipped"] >= 2 and skipped["rollbacks"] == 0
    assert back["rollbacks"] == skipped["skipped"]
    rows, others = there.rows(f"skips {layout}"), there.rows(f"back {layout}")
    assert [row["step"] for row in others] == list(range(1, STEPS + 1))
    assert [row["skipped"] for row in rows] == [row["skipped"] for row in others]
    pairs = [(a["loss"], b["loss"]) for a, b in zip(rows, others, strict=True) if not a["skipped"]]
    assert [b for _, b in pairs] == pytest.approx([a for a, _ in pairs], rel=1e-6)
    assert all(row.get("passed_over") and row["loss"] is None for row in others if row["skipped"])


def test_each_rollback_is_told_with_its_steps(there: Place, on_two: Runs) -> None:
    assert on_two["back dp2-zero1"][0].error is None
    faults = there.faults("back dp2-zero1")
    steps = [row["step"] for row in there.rows("back dp2-zero1") if row["skipped"]]
    assert [row["passed_over"] for row in faults if row["kind"] == "rollback"] == [[step - 1] for step in steps]
    named = [sample["sample_id"] for row in faults if row["kind"] == "non_finite" for sample in row["samples"]]
    assert len(named) == len(steps) and len(set(named)) == 1


def test_bad_samples_are_listed_for_the_next_start(there: Place, on_two: Runs) -> None:
    assert on_two["skips dp2-zero1"][0].error is None
    assert (there.run("skips dp2-zero1") / "bad_samples.txt").read_text() == f"sample-{BAD}\n"
    without = on_two["without"][0].report
    assert without is not None and without["skipped"] == 0


def test_a_run_that_may_not_go_back_ends_with_its_reason(on_two: Runs) -> None:
    assert [outcome.error for outcome in on_two["few"]] == ["NumericsError"] * 2
    assert "guard.max_rollbacks" in (on_two["few"][0].message or "")


def test_a_run_without_a_way_back_tells_why_and_what_to_do(there: Place, on_two: Runs) -> None:
    """The bad sample comes before the first checkpoint is due."""
    assert [outcome.error for outcome in on_two["unsaved"]] == ["NumericsError"] * 2
    (fault,) = there.faults("unsaved")
    message = on_two["unsaved"][0].message
    assert f"step {fault['step']} was skipped; see {there.run('unsaved')}/faults.jsonl" in message
    assert "no whole checkpoint from before them to go back to: the first is saved after step 1000" in message
    assert f"add guard.exclude={there.run('unsaved')}/bad_samples.txt" in message
    assert f"with checkpoint.every={fault['step'] - 1} there would be one" in message


@pytest.mark.parametrize(
    ("bad", "newest", "every", "keep_last", "said"),
    [
        (
            (4, 5, 6),
            7,
            1,
            3,
            "the newest is of step 7, and checkpoint.keep_last=3 keeps none .* checkpoint.keep_last=4 ",
        ),
        (
            (5, 6, 7),
            8,
            2,
            1,
            "the newest is of step 8, and checkpoint.keep_last=1 keeps none .* checkpoint.keep_last=3 ",
        ),
        (
            (0, 1, 2),
            0,
            500,
            2,
            "since the run began with them. Remedy: lower optim.lr, or name those samples in a file",
        ),
        ((7,), 0, 500, 2, "the first is saved after step 500, .* with checkpoint.every=7 there would be one$"),
    ],
)
def test_why_there_is_no_way_back(
    tmp_path: Path, bad: tuple[int, ...], newest: int, every: int, keep_last: int, said: str
) -> None:
    config = micro_config(name="run", data__uri="gone", checkpoint__every=every, checkpoint__keep_last=keep_last)
    assert re.search(said, str(nothing_before(tmp_path, bad, newest, config)))
    spiky = micro_config(name="run", data__uri="gone", guard__spike_factor=3)
    assert "raise guard.spike_factor=3, or " in str(too_often(tmp_path, bad, 3, spiky.guard))
