"""A non-finite loss or gradient: the step is skipped everywhere, changes nothing, and names its samples."""

from __future__ import annotations

import json
import math

import pytest
import torch

from megavideo.diffusion.randomness import SampleKey
from megavideo.diffusion.timesteps import draw_level
from megavideo.testing.launch import run
from megavideo.testing.settings import micro_config
from megavideo.testing.train_cases import Outcome
from megavideo.types import Grid
from tests.train.conftest import BAD_SAMPLE, Place

Outcomes = dict[str, list[Outcome]]
SPOILED = ["spoiled_zero0", "spoiled_zero1", "unclipped_zero0", "unclipped_zero1", "spoiled_bf16"]
BAD_ID = f"sample-{BAD_SAMPLE}"


@pytest.mark.parametrize("name", SPOILED)
def test_a_skipped_step_changes_no_state(place: Place, on_two: Outcomes, name: str) -> None:
    rows = place.rows(name)
    skipped = [row["step"] for row in rows if row["skipped"]]
    assert 1 < len(skipped) < len(rows)
    assert [outcome.report and outcome.report["skipped"] for outcome in on_two[name]] == [len(skipped)] * 2
    for row in rows[1:]:
        before, after = place.reader(name, row["step"] - 1), place.reader(name, row["step"])
        assert after.manifest.optimizer_steps - before.manifest.optimizer_steps == (not row["skipped"])
        for state in ("weight", "exp_avg", "exp_avg_sq", "ema"):
            old, new = before.whole(state), after.whole(state)
            assert all(values.isfinite().all() for values in new.values())
            assert all(torch.equal(old[key], new[key]) for key in old) == row["skipped"], (state, row["step"])


@pytest.mark.parametrize("name", SPOILED)
def test_steps_that_hold_the_sample_are_skipped_and_no_others(place: Place, on_two: Outcomes, name: str) -> None:
    rows = place.rows(name)
    assert all((row["loss"] is None) == row["skipped"] for row in rows)
    # every sample comes once in an epoch, and here an epoch has two steps
    assert [sum(row["skipped"] for row in rows[i : i + 2]) for i in (0, 2, 4, 6)] == [1] * 4


def test_zero_stages_agree_after_a_skip(place: Place, on_two: Outcomes) -> None:
    expected = place.losses("spoiled_zero0")
    assert place.losses("spoiled_zero1") == pytest.approx(expected, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", SPOILED)
def test_faults_name_sample_timestep_and_grid(place: Place, on_two: Outcomes, name: str) -> None:
    rows = [json.loads(line) for line in (place.run(name) / "faults.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [row["step"] for row in place.rows(name) if row["skipped"]]
    grid = Grid(1, 3, 2)
    for row in rows:
        (suspect,) = row["samples"]
        assert suspect["sample_id"] == BAD_ID and suspect["grid"] == [grid.t, grid.h, grid.w]
        key = SampleKey(0, BAD_ID, suspect["visit"])
        level = draw_level(micro_config(data__uri="x").diffusion, key, grid)
        assert suspect["timestep"] == pytest.approx(1000 * level, rel=1e-5)
        assert not math.isfinite(float(suspect["error"]))


@pytest.mark.parametrize("name", ["hopeless_zero0", "hopeless_zero1"])
def test_a_run_that_only_skips_ends(place: Place, on_two: Outcomes, name: str) -> None:
    for outcome in on_two[name]:
        assert outcome.error == "NumericsError"
        assert outcome.message.startswith("3 steps in a row") and "faults.jsonl" in outcome.message
    assert len(place.rows(name)) == 3
    assert len((place.run(name) / "faults.jsonl").read_text().splitlines()) == 3


def test_the_command_ends_with_status_2_and_one_message(place: Place) -> None:
    words = place.words("hopeless", "hopeless", data__tokens_per_pack=16, train__max_skipped=2)
    finished = run("megavideo", ["train", *words], place.root / "hopeless_logs")
    assert finished.status == 2
    assert "error: 2 steps in a row" in finished.err and "Traceback" not in finished.err
    assert f"{finished.err.count('skipped: loss')} skipped" == "2 skipped"
    assert "sample-" in finished.err and finished.out == ""
