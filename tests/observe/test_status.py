"""The status of runs that are at work, stopped, stalled, finished, empty or damaged, from their folders alone."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from megavideo.config.schema.report import ReportRun
from megavideo.errors import DataError
from megavideo.observe.faults import FaultLog
from megavideo.observe.metrics import MetricsWriter
from megavideo.observe.report.write import write_report
from megavideo.observe.salvage import last_rows, salvage_rows
from megavideo.observe.stages import StageLog, StageRow
from megavideo.observe.status import RunStatus, find_runs, read_status
from megavideo.observe.status_view import plain_text, terminal_text
from megavideo.observe.trend import trend_of
from tests.observe.made_run import make_run

NOW = 1_800_000_000.0


def _write(root: Path, *, steps: int, of: int = 100, age: float = 1.0, seconds: float = 2.0) -> Path:
    """A run of `of` steps that made `steps` of them, the last `age` seconds before NOW."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.yaml").write_text(f"name: {root.name}\ntrain: {{steps: {of}}}\n")
    path = root / "config.yaml"
    if steps:
        with MetricsWriter(root / "metrics.jsonl") as writer:
            for step in range(1, steps + 1):
                writer.write(step, {"loss": 1 / step, "seconds": seconds, "tokens": 1000, "mfu": 0.5})
        path = root / "metrics.jsonl"
    os.utime(path, (NOW - age, NOW - age))
    return root


def _status(root: Path) -> RunStatus:
    return read_status(root, window=20, now=NOW)


def test_a_run_at_work(tmp_path: Path) -> None:
    status = _status(_write(tmp_path / "run", steps=60, age=3.0))
    assert (status.state, status.step, status.steps, status.age_seconds) == ("running", 60, 100, pytest.approx(3.0))
    assert status.eta_seconds == pytest.approx(80.0) and status.share == pytest.approx(0.6)
    assert status.speed is not None
    assert status.speed.seconds_per_step == pytest.approx(2.0)
    assert status.speed.tokens_per_second == pytest.approx(500.0) and status.speed.mfu == pytest.approx(0.5)
    assert status.loss is not None and status.loss.direction == "falling"
    assert status.loss.mean == pytest.approx(sum(1 / step for step in range(41, 61)) / 20)


@pytest.mark.parametrize(
    ("age", "seconds", "state"),
    [(55.0, 2.0, "running"), (61.0, 2.0, "stalled"), (290.0, 30.0, "running"), (310.0, 30.0, "stalled")],
)
def test_patience_grows_with_the_step(tmp_path: Path, age: float, seconds: float, state: str) -> None:
    status = _status(_write(tmp_path / "run", steps=60, age=age, seconds=seconds))
    assert status.state == state
    assert (status.eta_seconds is None) == (state == "stalled")
    if state == "stalled":
        assert status.note.startswith("no step for ") and f"one takes {seconds:.3g} s" in status.note


def test_ends_are_told_apart(tmp_path: Path) -> None:
    assert _status(_write(tmp_path / "done", steps=100, age=9999)).state == "finished"
    stopped = _write(tmp_path / "stopped", steps=60, age=9999)
    log = FaultLog(stopped / "faults.jsonl", clock=lambda: datetime.fromtimestamp(NOW - 9990, UTC))
    log.write(60, "signal", reason="asked to stop by SIGUSR1")
    status = _status(stopped)
    assert (status.state, status.note) == ("stopped", "asked to stop by SIGUSR1, at step 60")
    assert status.last_fault is not None and status.last_fault.age_seconds == pytest.approx(9990)
    log.write(60, "hang", rank=3, doing="all_reduce")
    assert _status(stopped).note == "rank 3 hung: all_reduce, at step 60"
    _write(stopped, steps=40, age=5.0)  # it goes on from a checkpoint before that
    assert _status(stopped).state == "running"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_what_may_not_be_read_is_told_or_passed_over() -> None:
    root = Path(tempfile.mkdtemp())  # pytest's own folders are root's alone
    try:
        root.chmod(0o755)
        _write(root / "open", steps=0).chmod(0o755)
        _write(root / "private", steps=0).chmod(0o700)
        _write(root / "private" / "run", steps=0)
        os.seteuid(65534)
        assert find_runs([str(root)]) == [root / "open"]
        for place in ("private", "private/run"):
            with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
                find_runs([str(root / place)])
            with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
                write_report(ReportRun(), root / place)
    finally:
        os.seteuid(0)
        shutil.rmtree(root)


def test_a_run_that_was_started_again_is_starting(tmp_path: Path) -> None:
    root = _write(tmp_path / "run", steps=60, age=9999)
    at = {"seconds": NOW - 200}
    log = FaultLog(root / "faults.jsonl", clock=lambda: datetime.fromtimestamp(at["seconds"], UTC))
    log.write(60, "restart", processes=8)
    status = _status(root)
    assert (status.state, status.note) == ("starting", "started again 3m20s ago, no step since")
    at["seconds"] = NOW - 2000
    log.write(60, "restart", processes=8)
    assert _status(root).state == "stalled"  # too long for a start
    at["seconds"] = NOW - 100
    log.write(60, "restart", processes=8)
    _write(root, steps=61, age=90)
    assert _status(root).state == "stalled"  # it made steps since


def test_runs_without_a_step(tmp_path: Path) -> None:
    assert _status(_write(tmp_path / "new", steps=0, age=30)).state == "starting"
    assert _status(_write(tmp_path / "old", steps=0, age=4000)).state == "stalled"
    (tmp_path / "empty").mkdir()
    empty = _status(tmp_path / "empty")
    assert (empty.state, empty.step, empty.steps, empty.loss) == ("empty", 0, None, None)
    assert "nothing was written" in plain_text([empty])


def test_a_damaged_folder_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    root = _write(tmp_path / "run", steps=60)
    with (root / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe rubbish\n{"step": 61, "loss": 0.5}\n{"step": 62, "lo')
    (root / "config.yaml").write_text("name: [unclosed")
    (root / "faults.jsonl").write_text('not json\n{"step": 4}\n')
    (root / "validation.jsonl").mkdir()
    (root / "checkpoints" / "step_broken").mkdir(parents=True)
    (root / "checkpoints" / "step_broken" / "manifest.json").write_text("{")
    status = read_status(root, window=20)
    assert (status.step, status.steps, status.share) == (61, None, None)
    assert status.damaged == (
        "metrics.jsonl: 1 damaged lines",
        "faults.jsonl: 1 damaged lines",
        "validation.jsonl: 1 damaged lines",
        "config.yaml: cannot be read",
    )
    assert "damaged" in plain_text([status])


def test_stages_faults_and_checkpoints(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=250, samples=False)
    status = read_status(folder.root, window=100, now=folder.metrics.stat().st_mtime + 1)
    assert (status.step, status.steps) == (250, 380)
    assert status.stage is not None
    assert (status.stage.name, status.stage.number, status.stage.of, status.stage.step) == ("clips_256", 2, 3, 130)
    assert status.stage.eta_seconds is not None and status.eta_seconds is not None
    assert status.eta_seconds > status.stage.eta_seconds
    assert status.loss is not None and status.loss.steps <= 65  # no loss of the stage before
    assert status.faults == {"non_finite": 2, "spike": 1, "rollback": 1, "straggler": 1, "restart": 1}
    assert status.checkpoint is not None and status.checkpoint.step == 200
    assert status.validation is not None and status.validation.step == 240
    text = plain_text([status])
    for words in ("2 of 3: clips_256, step 130 of 160", "2 skipped steps (not finite)", "1 restart", "by the average"):
        assert words in text


def test_the_last_stage_ends_the_run(tmp_path: Path) -> None:
    assert read_status(make_run(tmp_path / "whole", samples=False).root, 100).state == "finished"
    root = _write(tmp_path / "first", steps=50, of=50, age=9999)
    (root / "config.yaml").write_text("stages: {a: {train: {steps: 50}}, b: {train: {steps: 70}}}\n")
    log = StageLog(root / "stages.jsonl")
    log.begin(StageRow("a", 1, 2, 1, None, 50, "dp1"))
    log.end(50)
    status = _status(root)
    assert (status.state, status.steps) == ("stopped", 120)
    assert "stage a is over" in status.note


def test_a_run_without_a_curriculum_is_one_stage_without_a_name(tmp_path: Path) -> None:
    root = _write(tmp_path / "run", steps=50, age=1.0)
    StageLog(root / "stages.jsonl").begin(StageRow("", 0, 1, 1, None, 100, "dp1"))
    status = _status(root)
    assert (status.state, status.steps, status.stage) == ("running", 100, None)


def test_progress_by_stages_where_the_steps_of_others_are_unknown(tmp_path: Path) -> None:
    root = _write(tmp_path / "run", steps=15, of=10)
    log = StageLog(root / "stages.jsonl")
    log.begin(StageRow("a", 1, 4, 1, None, 10, "dp1"))
    log.end(10)
    log.begin(StageRow("b", 2, 4, 11, None, 10, "dp1"))
    status = _status(root)
    assert (status.steps, status.share) == (None, pytest.approx(1.5 / 4))
    assert "38 % by stages, step 15" in plain_text([status])


def test_find_runs(tmp_path: Path) -> None:
    _write(tmp_path / "runs" / "b", steps=1)
    _write(tmp_path / "runs" / "a", steps=1)
    (tmp_path / "runs" / "other").mkdir()
    assert [root.name for root in find_runs([str(tmp_path / "runs")])] == ["a", "b"]
    assert [root.name for root in find_runs([str(tmp_path / "runs" / "b")])] == ["b"]
    with pytest.raises(DataError, match="is no folder"):
        find_runs([str(tmp_path / "missing")])
    with pytest.raises(DataError, match="neither a run folder"):
        find_runs([str(tmp_path)])


def test_table_of_several(tmp_path: Path) -> None:
    roots = [_write(tmp_path / name, steps=steps) for name, steps in (("one", 60), ("two", 100))]
    lines = plain_text([_status(root) for root in roots]).splitlines()
    assert lines[0].split()[:4] == ["run", "state", "step", "done"]
    assert lines[1].split()[0] == "one" and "60/100" in lines[1] and "finished" in lines[2]
    assert "MFU" in lines[0] and "stage" not in lines[0]  # no run has one
    for runs in ([_status(roots[0])], [_status(root) for root in roots]):
        drawn = terminal_text(runs, 120)
        assert "\x1b[" in drawn and "one" in drawn
        assert all(len(line) <= 400 for line in drawn.splitlines())


def test_the_bar_leaves_the_facts_their_own_lines(tmp_path: Path) -> None:
    drawn = terminal_text([_status(_write(tmp_path / "run", steps=60))], 100)
    assert "progress" in drawn and "step 60 of 100" in drawn


def test_trend() -> None:
    steady = [(step, 1.0 + 0.1 * (-1) ** step) for step in range(100)]
    falling = [(step, 2.0 - step / 100 + 0.1 * (-1) ** step) for step in range(100)]
    assert trend_of([], 10) is None and trend_of([(1, None)], 10) is None
    assert trend_of([(1, 0.5)], 10).direction == "unknown"  # type: ignore[union-attr]
    for losses, direction in ((steady, "flat"), (falling, "falling"), (falling[::-1], "rising")):
        trend = trend_of(losses, 30)
        assert trend is not None and trend.direction == direction


def test_tail_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_rows(path, 5).rows == [] and salvage_rows(path).rows == []
    with MetricsWriter(path) as writer:
        for step in range(1, 4001):
            writer.write(step, {"loss": 0.1, "note": "x" * (step % 97)})
    for count in (1, 7, 3999, 4000, 9000):
        found = last_rows(path, count)
        assert [row["step"] for row in found.rows] == list(range(max(1, 4001 - count), 4001))
        assert found.damaged == 0


def test_a_million_rows_take_no_longer(tmp_path: Path) -> None:
    """The file is as long as one of a million rows: a hole stands for its beginning, and would take seconds to read."""
    root = _write(tmp_path / "run", steps=500)
    rows = (root / "metrics.jsonl").read_bytes()
    with (root / "metrics.jsonl").open("r+b") as file:
        file.seek(450_000_000)
        file.write(b"\n" + rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    status = read_status(root, window=100)
    assert time.process_time() - began < 0.2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    assert status.step == 500


def test_no_heavy_import() -> None:
    code = (
        "import sys, megavideo.observe.status, megavideo.observe.status_view, megavideo.observe.faults\n"
        "import megavideo.observe.stages, megavideo.observe.validations, megavideo.observe.memory\n"
        "print([name for name in ('torch', 'numpy', 'matplotlib', 'PIL', 'rich', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
