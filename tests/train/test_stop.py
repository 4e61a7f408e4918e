"""A run that is asked to stop on one rank saves on all, ends with a status that asks for another start, and goes on."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from megavideo.errors import RETRY_STATUS
from megavideo.testing.dataset import write_dataset
from megavideo.testing.launch import Launched, run
from megavideo.testing.settings import micro_words
from megavideo.testing.train_cases import Case, run_cases

STEPS = 40


def words(root: Path, name: str) -> list[str]:
    given = {"train__steps": STEPS, "train__packs_per_step": 2, "checkpoint__every": 1000, "layout": "dp2-zero1"}
    return micro_words(name=name, output=root / "runs", data__uri=root / "latents", **given)


def rows(root: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (root / "runs" / name / "metrics.jsonl").read_text().splitlines()]


def test_one_signal_saves_every_rank(tmp_path: Path) -> None:
    write_dataset(str(tmp_path / "latents"), 12)
    [whole] = run_cases([Case(words(tmp_path, "whole"))], tmp_path / "whole", processes=2)
    assert [outcome.error for outcome in whole] == [None, None]

    place = tmp_path / "runs" / "asked"
    with Launched("megavideo", ["train", *words(tmp_path, "asked")], tmp_path / "first", processes=2) as launched:
        launched.wait_for_lines(place / "metrics.jsonl", 5)
        launched.signal_rank(1, signal.SIGUSR1)
        asked = launched.finish()
    assert asked.status != 0 and f"exitcode  : {RETRY_STATUS}" in asked.err, asked.err
    assert (
        "asked to stop" in asked.err and 'Traceback (most recent call last):\n  File "' + "megavideo" not in asked.err
    )
    (saved,) = (place / "checkpoints").glob("step_*")
    done = len(rows(tmp_path, "asked"))
    assert 5 <= done < STEPS and saved.name == f"step_{done:08d}"
    faults = [json.loads(line) for line in (place / "faults.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in faults] == ["signal"]

    again = run("megavideo", ["train", *words(tmp_path, "asked")], tmp_path / "second", processes=2)
    assert again.status == 0, again.err
    losses = [[row["loss"] for row in rows(tmp_path, name)] for name in ("whole", "asked")]
    assert len(losses[1]) == STEPS
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
