"""A disk that is full for a while: the record of a run has a gap, and the run goes on."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from megavideo.errors import DataError
from megavideo.observe.metrics import MetricsWriter, read_metrics
from megavideo.observe.rows import read_rows
from megavideo.observe.stages import StageLog, StageRow
from megavideo.observe.tensorboard import TensorBoardSink
from megavideo.observe.validations import ValidationLog
from tests.full_disk import FILLER, fill


def test_rows_that_find_no_room_are_logged(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics, validations = small_disk / "metrics.jsonl", small_disk / "validation.jsonl"
    log = ValidationLog(validations)
    with MetricsWriter(metrics) as writer:
        for step in range(1, 31):
            if step == 11:
                fill(small_disk)
            if step == 21:
                (small_disk / FILLER).unlink()
            writer.write(step, {"loss": step / 10, "note": "x" * 1000})
            log.write(step, "", {"loss": step / 10, "note": "x" * 1000})
    steps = [row["step"] for row in read_metrics(metrics)]
    assert steps[:10] == list(range(1, 11)) and steps[-10:] == list(range(21, 31)) and len(steps) < 30
    assert [row["step"] for row in read_rows(validations)][-10:] == list(range(21, 31))
    lost = set(range(1, 31)) - set(steps)
    assert all(f"'step': {step}," in caplog.text for step in lost) and "No space left on device" in caplog.text


def test_stages_that_find_no_room_are_logged_and_end_all_the_same(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = StageLog(small_disk / "stages.jsonl")
    images = StageRow("images", 1, 2, 1, None, 100, "dp1")
    log.begin(images)
    log.end(100)
    fill(small_disk)
    log.path.unlink()  # its block is all the room there is, and another file takes it
    (small_disk / "other").write_bytes(bytes(4096))
    log.begin(replace(images, name="clips", number=2, first_step=101))
    assert "clips" in caplog.text and "No space left on device" in caplog.text
    (small_disk / FILLER).unlink()
    log.end(150)
    assert [(row.name, row.first_step, row.last_step) for row in log.rows()] == [("clips", 101, 150)]


def test_rows_that_cannot_be_dropped_are_a_clear_error(small_disk: Path) -> None:
    log = ValidationLog(small_disk / "validation.jsonl")
    for step in (1, 2):
        log.write(step, "", {"loss": 0.5})
    fill(small_disk)
    with pytest.raises(DataError, match=r"validation\.jsonl: .*No space left.*Remedy: free space"):
        log.rewind(1)
    assert [row["step"] for row in read_rows(log.path)] == [1, 2]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of the writer's own thread
def test_tensorboard_without_room_ends_no_run(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = TensorBoardSink(small_disk / "tensorboard")
    sink.write_stage(1, "one")
    fill(small_disk)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 200):
            sink.write_validation(step, {"loss": 0.5, "loss_ema": 0.5})
            sink.write(step, {"loss": 0.5})
        sink.close()
    assert caplog.text.count("no more TensorBoard events") == 1
