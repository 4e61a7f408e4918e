"""A non-finite loss or gradient: the step is skipped everywhere, changes nothing, and names its samples."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from megavideo.diffusion.randomness import SampleKey
from megavideo.diffusion.timesteps import draw_level
from megavideo.testing.launch import run
from megavideo.testing.settings import micro_config
from megavideo.testing.train_cases import Outcome
from megavideo.train.step import Suspect, whole_segments
from megavideo.types import Grid
from tests.train.conftest import BAD_SAMPLE, NAN_ON_ONE, QUICK_ON_TWO, SPLIT_ON_TWO, Place, Runs, slow_but

Outcomes = Mapping[str, list[Outcome]]
SPOILED = [
    "spoiled_zero0", "spoiled_zero1", "unclipped_zero0", "unclipped_zero1", "spoiled_bf16",
    "spoiled_tp2-sp-zero0", "spoiled_tp2-sp-zero1", "spoiled_pp2-zero0", "spoiled_pp2-zero1",
    "spoiled_cp2-ring-zero0", "spoiled_cp2-ring-zero3", "spoiled_tp_bf16", "spoiled_pp_bf16", "spoiled_four",
]  # fmt: skip
BAD_ID = f"sample-{BAD_SAMPLE}"


@pytest.fixture(scope="session")
def outcomes(on_two: Runs, on_four: Runs) -> Outcomes:
    """Those on two and on four processes."""
    return ChainMap(on_two, on_four)  # type: ignore[arg-type]  # of mappings that are only read


@pytest.mark.parametrize("name", slow_but(SPOILED, QUICK_ON_TWO))
def test_a_skipped_step_changes_no_state(place: Place, outcomes: Outcomes, name: str) -> None:
    reports = [outcome.report for outcome in outcomes[name]]
    rows = place.rows(name)
    skipped = [row["step"] for row in rows if row["skipped"]]
    assert 1 < len(skipped) < len(rows)
    assert [report and report["skipped"] for report in reports] == [len(skipped)] * len(reports)
    for row in rows[1:]:
        before, after = place.reader(name, row["step"] - 1), place.reader(name, row["step"])
        assert after.manifest.optimizer_steps - before.manifest.optimizer_steps == (not row["skipped"])
        for state in ("weight", "exp_avg", "exp_avg_sq", "ema"):
            old, new = before.whole(state), after.whole(state)
            assert all(values.isfinite().all() for values in new.values())
            assert all(torch.equal(old[key], new[key]) for key in old) == row["skipped"], (state, row["step"])


@pytest.mark.parametrize("name", slow_but(SPOILED, QUICK_ON_TWO))
def test_steps_that_hold_the_sample_are_skipped_and_no_others(place: Place, outcomes: Outcomes, name: str) -> None:
    assert outcomes[name]
    rows = place.rows(name)
    assert all((row["loss"] is None) == row["skipped"] for row in rows)
    # every sample comes once in an epoch, and here an epoch has two steps
    epochs = len(rows) // 2
    assert [sum(row["skipped"] for row in rows[2 * i : 2 * i + 2]) for i in range(epochs)] == [1] * epochs


@pytest.mark.parametrize("name", slow_but((name for name in SPOILED if "unclipped" not in name), QUICK_ON_TWO))
def test_layouts_agree_after_a_skip(place: Place, outcomes: Outcomes, name: str) -> None:
    assert outcomes[name] and outcomes["spoiled_zero1"]
    losses, expected = place.losses(name), place.losses("spoiled_zero1")
    tolerance = 2e-2 if "bf16" in name else 1e-5
    assert losses == pytest.approx(expected[: len(losses)], rel=tolerance, nan_ok=True)


@pytest.mark.parametrize("name", slow_but(SPOILED, QUICK_ON_TWO))
def test_faults_name_sample_timestep_and_grid(place: Place, outcomes: Outcomes, name: str) -> None:
    assert outcomes[name]
    rows = place.faults(name)
    assert [row["step"] for row in rows] == [row["step"] for row in place.rows(name) if row["skipped"]]
    grid = Grid(1, 3, 2)
    for row in rows:
        (suspect,) = row["samples"]
        assert suspect["sample_id"] == BAD_ID and suspect["grid"] == [grid.t, grid.h, grid.w]
        key = SampleKey(0, BAD_ID, suspect["visit"])
        level = draw_level(micro_config(data__uri="x").diffusion, key, grid)
        assert suspect["timestep"] == pytest.approx(1000 * level, rel=1e-5)
        assert not math.isfinite(float(suspect["error"]))


@pytest.mark.parametrize("layout", slow_but(SPLIT_ON_TWO, ("tp2-sp", "pp2", "dp2-zero1")))
def test_each_segment_is_named_once(place: Place, on_two: Runs, layout: str) -> None:
    """Also where all ranks have it, and where two have a part of it each."""
    assert on_two[f"split_{layout}"] and on_two["split_dp2-zero1"]
    rows, plain = place.faults(f"split_{layout}"), place.faults("split_dp2-zero1")
    assert len(rows) == len(plain) == 2
    for row, other in zip(rows, plain, strict=True):
        named, expected = (sorted((s["sample_id"], s["visit"]) for s in faults["samples"]) for faults in (row, other))
        assert len(set(named)) == len(named) >= 4
        assert named == expected
        assert not any(math.isfinite(float(suspect["error"])) for suspect in row["samples"])


@pytest.mark.parametrize("layout", slow_but(NAN_ON_ONE, ("tp2-sp-zero1", "pp2-zero0", "dp2-zero3")))
def test_a_gradient_of_one_rank_skips_the_step_on_all(place: Place, on_two: Runs, layout: str) -> None:
    name = f"nan_{layout}"
    assert [outcome.report and outcome.report["skipped"] for outcome in on_two[name]] == [1, 1]
    rows = place.rows(name)
    assert [row["skipped"] for row in rows] == [False, True, False]
    one, two, three = (place.reader(name, step) for step in (1, 2, 3))
    assert [reader.manifest.optimizer_steps for reader in (one, two, three)] == [1, 1, 2]
    for state in ("weight", "exp_avg", "exp_avg_sq", "ema"):
        before, after, later = one.whole(state), two.whole(state), three.whole(state)
        assert all(torch.equal(values, after[key]) for key, values in before.items())
        assert any(not torch.equal(values, later[key]) for key, values in before.items())
        assert all(bool(values.isfinite().all()) for values in later.values())
    # the errors are finite: every segment is named, with its whole error, however many ranks had a part of it
    (fault,) = place.faults(name)
    named = {(suspect["sample_id"], suspect["visit"]): float(suspect["error"]) for suspect in fault["samples"]}
    assert len(named) == len(fault["samples"])
    assert sum(named.values()) == pytest.approx(rows[1]["loss"] * rows[1]["tokens"], rel=1e-5)


def test_parts_of_a_segment_are_summed_under_its_first_rank() -> None:
    one = Suspect(1, "a", 0, 5.0, (1, 2, 2), 1.5)
    parts = [one, replace(one, visit=1), replace(one, rank=2, error=2.0), replace(one, rank=3, visit=1, error=math.nan)]
    first, second = whole_segments(parts)
    assert first == replace(one, error=3.5)
    assert (second.rank, second.visit) == (1, 1) and math.isnan(second.error)


@pytest.mark.parametrize("name", slow_but(["hopeless_zero0", "hopeless_zero1"], QUICK_ON_TWO))
def test_a_run_that_only_skips_ends(place: Place, on_two: Runs, name: str) -> None:
    for outcome in on_two[name]:
        assert outcome.error == "NumericsError"
        assert outcome.message.startswith("3 steps in a row") and "faults.jsonl" in outcome.message
    assert len(place.rows(name)) == 3
    assert len((place.run(name) / "faults.jsonl").read_text().splitlines()) == 3


def test_the_command_ends_with_status_2_and_one_message(place: Place) -> None:
    words = place.words("hopeless", "hopeless", data__tokens_per_pack=16, guard__max_skipped=2)
    finished = run("megavideo", ["train", *words], place.root / "hopeless_logs")
    assert finished.status == 2
    assert "error: 2 steps in a row" in finished.err and "Traceback" not in finished.err
    assert f"{finished.err.count('skipped: loss')} skipped" == "2 skipped"
    assert "sample-" in finished.err and finished.out == ""
