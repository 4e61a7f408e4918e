"""A run folder that is another's: all ranks of a second start end, and so does a run that was taken over."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from megavideo.data.storage.owners import Claim, owning
from megavideo.errors import RETRY_STATUS
from megavideo.observe.owner import OWNER_FOLDER
from megavideo.testing.dataset import write_dataset
from megavideo.testing.launch import Launched, run
from megavideo.testing.settings import micro_words

pytestmark = pytest.mark.slow

_CLAIM = Claim("train", "name= another run")


def words(root: Path, steps: int, layout: str) -> list[str]:
    write_dataset(str(root / "latents"), 12)
    given = {"train__steps": steps, "model__layers": 1, "layout": layout}
    return ["train", *micro_words(name="run", output=root, data__uri=root / "latents", **given)]


def test_every_rank_of_a_second_start_ends(tmp_path: Path) -> None:
    with owning(tmp_path / "run", _CLAIM):
        second = run("megavideo", words(tmp_path, 8, "dp2-zero1"), tmp_path / "logs", processes=2)
    assert second.status != 0 and f"exitcode  : {RETRY_STATUS}" in second.err, second.err
    assert f"in use by `megavideo train`, process {os.getpid()} on" in second.err
    assert "raise OutputInUse" not in second.err  # a message, and no traceback
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_taken_over_ends(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with Launched("megavideo", words(tmp_path, 1_000_000, "dp1-zero0"), tmp_path / "logs") as launched:
        launched.wait_for_lines(place / "metrics.jsonl", 3)
        for sign in (place / OWNER_FOLDER).iterdir():
            sign.unlink()  # as the next owner does, once this one gave no sign of life for long enough
        begin = time.monotonic()
        with owning(place, _CLAIM):
            ended = launched.finish()
    assert ended.status == RETRY_STATUS, ended.err
    assert f"taken over by `megavideo train`, process {os.getpid()}" in ended.err
    assert time.monotonic() - begin < 60
