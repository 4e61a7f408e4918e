"""Logs beside the metrics: faults that last over a restart, validations, stages that begin, end and begin anew."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from megavideo.errors import DataError
from megavideo.observe.faults import FaultLog
from megavideo.observe.memory import host_peak_bytes, memory_metrics
from megavideo.observe.metrics import MetricsWriter
from megavideo.observe.rows import read_rows
from megavideo.observe.salvage import salvage_rows
from megavideo.observe.stages import StageLog, StageRow
from megavideo.observe.validations import ValidationLog

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_faults_tell_when_and_what(tmp_path: Path) -> None:
    path = tmp_path / "run" / "faults.jsonl"
    log = FaultLog(path, 0, clock=lambda: NOON)
    sample = {"sample_id": "a", "visit": 1, "timestep": 300.0, "grid": (3, 4, 4), "error": float("inf")}
    log.write(7, "non_finite", loss=float("nan"), samples=[sample])
    assert list(read_rows(path)) == [
        {
            "step": 7,
            "kind": "non_finite",
            "time": "2026-03-01T12:00:00+00:00",
            "loss": "nan",
            "samples": [sample | {"grid": [3, 4, 4], "error": "inf"}],
        }
    ]


def _kinds(path: Path) -> list[tuple[int, str]]:
    return [(row["step"], row["kind"]) for row in read_rows(path)]


def test_a_restart_drops_faults_that_come_again(tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    log = FaultLog(path, 0)
    log.write(3, "non_finite")
    log.write(12, "spike")
    log.write(13, "straggler", rank=3)
    log.write(14, "signal")
    with path.open("a") as file:
        file.write('{"step": 15, "ki')  # the kill
    log = FaultLog(path, resume_step=10)
    log.write(10, "restart")
    assert _kinds(path) == [(3, "non_finite"), (14, "signal"), (10, "restart")]
    FaultLog(path).write(11, "hang", rank=1)  # another rank drops nothing
    assert _kinds(path)[-1] == (11, "hang")


def test_faults_before_a_rollback_last(tmp_path: Path) -> None:
    """Their steps are passed over, so they will not be met again."""
    path = tmp_path / "faults.jsonl"
    log = FaultLog(path, 0)
    for step in (21, 22):
        log.write(step, "non_finite")
    log.write(22, "rollback", to=20)
    log.write(24, "spike")
    FaultLog(path, resume_step=20)
    assert _kinds(path) == [(21, "non_finite"), (22, "non_finite"), (22, "rollback")]


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    FaultLog(tmp_path / "file" / "faults.jsonl").write(1, "save_failed", reason="disk full")
    assert "disk full" in caplog.text


def test_rows_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    code = (
        "import sys; from pathlib import Path; from megavideo.observe.faults import FaultLog\n"
        "log = FaultLog(Path(sys.argv[1]))\n"
        "for step in range(200): log.write(step, 'straggler', rank=int(sys.argv[2]), reason='x' * 300)"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(path), str(rank)]) for rank in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    rows = list(read_rows(path))
    assert len(rows) == 400 and {row["rank"] for row in rows} == {0, 1}


def test_validations_of_later_steps_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "validation.jsonl"
    log = ValidationLog(path)
    for step in (10, 20, 30):
        log.write(step, "images", {"loss": step / 100, "loss_ema": float("nan"), "levels": [0.5]})
    ValidationLog(path, resume_step=20).write(30, "images", {"loss": 0.9})
    assert [(row["step"], row["loss"]) for row in read_rows(path)] == [(10, 0.1), (20, 0.2), (30, 0.9)]
    assert next(read_rows(path))["loss_ema"] is None


def test_stages_begin_end_and_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "stages.jsonl"
    images = StageRow("images", 1, 2, 1, None, 100, "dp2-zero1")
    clips = StageRow("clips", 2, 2, 101, None, 50, "dp2-zero1")
    log = StageLog(path)
    with pytest.raises(ValueError, match="no stage"):
        log.end(1)
    log.begin(images)
    log.begin(images)
    log.end(100)
    log.begin(clips)
    log.end(150)
    assert [(row.name, row.last_step) for row in log.rows()] == [("images", 100), ("clips", 150)]
    assert len(path.read_text().splitlines()) == 4
    assert [row.last_step for row in StageLog(path, resume_step=120).rows()] == [100, None]
    assert [row.name for row in StageLog(path, resume_step=100).rows()] == ["images"]
    again = StageLog(path, resume_step=40)
    again.begin(StageRow("images", 1, 2, 1, None, 100, "tp2-dp1"))
    assert [(row.layout, row.last_step) for row in again.rows()] == [("tp2-dp1", None)]


def test_metrics_go_back_within_a_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": 1.0})
        writer.rewind(1)
        writer.write(2, {"loss": 0.5})
    assert [(row["step"], row["loss"]) for row in read_rows(path)] == [(1, 1.0), (2, 0.5)]


def test_damage_does_not_stop_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    path.write_text(json.dumps({"step": 1, "kind": "spike"}) + "\n[3]\n" + json.dumps({"step": 2, "kind": "x"}) + "\n")
    with pytest.raises(DataError, match=r"faults\.jsonl: line 2"):
        list(read_rows(path))
    FaultLog(path, 2)
    assert _kinds(path) == [(1, "spike"), (2, "x")]


def test_a_row_after_a_torn_one_has_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    path.write_text('{"step": 1, "kind": "spike"}\n{"step": 2, "ki')  # the disk was full
    FaultLog(path).write(3, "hang", rank=1)
    assert [row["step"] for row in salvage_rows(path).rows] == [1, 3]
    FaultLog(path, resume_step=3)
    assert _kinds(path) == [(1, "spike"), (3, "hang")]


def test_host_peak_follows_an_allocation() -> None:
    before = host_peak_bytes()
    held = bytearray(64 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    after = memory_metrics(device_peak_bytes=3 * 10**9)
    assert before > 1 << 20
    assert after["host_memory_gb"] >= max(before, len(held)) / 1e9
    assert after["device_memory_gb"] == 3.0 and memory_metrics(None)["device_memory_gb"] is None
