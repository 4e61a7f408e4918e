"""How the bench times and watches: contests, parts in processes that fail in every way, rows and their page."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

Tools = Callable[[str], Any]


@pytest.fixture
def tools(repo_root: Path, tmp_path: Path) -> Iterator[Tools]:
    """Imports a module of the bench, or one of the test's own in its folder, by name."""
    folders = [str(repo_root / "tools" / "bench" / "gpu"), str(tmp_path)]
    sys.path[:0] = folders
    try:
        yield import_module
    finally:
        for folder in folders:
            sys.path.remove(folder)


class FakeClock:
    """A clock that runs give their time to; it fails to wait once it is `broken`."""

    def __init__(self) -> None:
        self.now, self.broken = 0.0, False
        self.marks: list[float] = []

    def mark(self) -> None:
        self.marks.append(self.now)

    def laps(self) -> list[float]:
        marks, self.marks = self.marks, []
        return [after - before for before, after in pairwise(marks)]

    def wait(self) -> None:
        if self.broken:
            raise RuntimeError("an illegal memory access was encountered")

    def memory(self) -> int:
        return 7


def taking(clock: FakeClock, told: list[str], name: str, *laps: tuple[str, float]) -> Any:
    def run(lap: Callable[[str], None]) -> None:
        told.append(name)
        for label, seconds in laps:
            clock.now += seconds
            lap(label)

    return run


def test_contestants_take_turns_and_laps_are_timed(tools: Tools) -> None:
    clock, told = FakeClock(), []
    runs = {
        "a": taking(clock, told, "a", ("forward", 1.0), ("backward", 2.0)),
        "b": taking(clock, told, "b", ("forward", 0.5), ("backward", 0.5)),
    }
    results = tools("timing").contest(runs, clock, 1e6, 1e6, most_rounds=4)
    assert "".join(told) == "aabb" + "ab" + "ba" + "ab" + "ba"
    assert (results["a"].median, results["a"].laps) == (3.0, {"forward": 1.0, "backward": 2.0})
    assert (results["b"].low, results["b"].high, results["b"].rounds, results["b"].peak_bytes) == (1.0, 1.0, 4, 7)


def test_what_is_short_is_run_several_times_a_stretch(tools: Tools) -> None:
    clock, told = FakeClock(), []
    results = tools("timing").contest(
        {"a": taking(clock, told, "a", ("x", 1e-3))}, clock, 1e6, 1e6, most_rounds=1, shortest=5e-3
    )
    assert len(told) == 2 + 5
    assert results["a"].median == pytest.approx(1e-3)
    assert results["a"].laps["x"] == pytest.approx(1e-3)


@pytest.mark.parametrize(("seconds", "limit", "rounds"), [(0.0, 0.0, 1), (0.0, 1e6, 3), (1e6, 1e6, 9)])
def test_time_decides_the_rounds(tools: Tools, seconds: float, limit: float, rounds: int) -> None:
    clock = FakeClock()
    results = tools("timing").contest({"a": taking(clock, [], "a", ("x", 1.0))}, clock, seconds, limit)
    assert results["a"].rounds == rounds


def test_a_contestant_that_fails_is_told_of_and_others_go_on(tools: Tools) -> None:
    clock, calls = FakeClock(), []

    def late(lap: Any) -> None:
        calls.append(1)
        clock.now += 1.0
        if len(calls) > 3:
            raise MemoryError("out of memory\nin many lines")

    runs = {"late": late, "good": taking(clock, [], "good", ("x", 1.0))}
    results = tools("timing").contest(runs, clock, 1e6, 1e6, most_rounds=5)
    assert results["late"] == "MemoryError: out of memory"
    assert results["good"].rounds == 5


def test_a_lost_device_ends_the_contest_by_name(tools: Tools) -> None:
    clock = FakeClock()

    def spoil(lap: Any) -> None:
        clock.broken = True
        raise RuntimeError("CUDA error")

    timing = tools("timing")
    with pytest.raises(timing.DeviceLostError, match="RuntimeError: CUDA error") as caught:
        timing.contest({"bad": spoil}, clock, 1.0, 1.0)
    assert caught.value.name == "bad"


PART = """
import os, signal, time
from timing import DeviceLostError
def measure(session):
    yield from session.guarded("first", ["good"], lambda: iter([session.row("first", "good", {"x": 1})]))
    yield from session.guarded("second", ["good", "bad"], lambda: second(session))
    yield session.row("third", "good", {"x": 3})
def second(session):
    yield session.row("second", "good", {"x": 2})
    if "bad" not in session.excluded:
        session.trying("bad")
        BAD
"""


def run(tools: Tools, tmp_path: Path, name: str, bad: str, seconds: float = 30.0) -> tuple[bool, list[Any]]:
    """Run a part whose second case does something bad: whether it came to its end, and its rows."""
    (tmp_path / f"{name}.py").write_text(PART.replace("BAD", bad))
    parts, session = tools("parts"), tools("session")
    end, rows = time.monotonic() + seconds, []

    def make(part: str, excluded: Any, done: Any, trying: Any) -> Any:
        return session.Session(part, None, FakeClock(), None, end, (), excluded, done, trying)

    return parts.run_part(parts.Part("p", "P", 1, name), make, end, rows.append), rows


@pytest.mark.parametrize(
    ("name", "bad", "note"),
    [
        ("crashes", "os.kill(os.getpid(), signal.SIGKILL)", "its process ended by signal 9"),
        ("leaves", "os._exit(3)", "its process ended with status 3"),
        ("loses", "raise DeviceLostError('bad', 'CUDA error')", "the device was lost: CUDA error"),
    ],
)
def test_a_part_whose_process_is_lost_goes_on_without_the_culprit(
    tools: Tools, tmp_path: Path, name: str, bad: str, note: str
) -> None:
    whole, rows = run(tools, tmp_path, name, bad)
    assert whole
    assert [(row.case, row.name, row.status) for row in rows] == [
        ("first", "good", "ok"), ("second", "good", "ok"), ("the part", "bad", "failed"), ("third", "good", "ok")
    ]  # fmt: skip
    assert rows[2].note == note


def test_a_case_that_fails_is_a_row(tools: Tools, tmp_path: Path) -> None:
    whole, rows = run(tools, tmp_path, "raises", "raise ValueError('no kernel')")
    assert whole
    assert [(row.case, row.name, row.status) for row in rows[2:]] == [
        ("second", "good", "failed"), ("second", "bad", "failed"), ("third", "good", "ok")
    ]  # fmt: skip
    assert rows[3].note == "ValueError: no kernel"


def test_a_part_over_its_time_is_stopped(tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools("parts"), "_GRACE_SECONDS", 0.5)
    begin = time.monotonic()
    whole, rows = run(tools, tmp_path, "hangs", "time.sleep(300)", seconds=3.0)
    assert not whole
    assert time.monotonic() - begin < 60
    assert (rows[-1].name, rows[-1].status) == ("bad", "failed")
    assert "stopped" in rows[-1].note


def test_a_part_that_cannot_be_imported_is_a_row(tools: Tools, tmp_path: Path) -> None:
    (tmp_path / "lacks.py").write_text("import a_package_that_is_nowhere")
    parts, rows = tools("parts"), []
    assert parts.run_part(parts.Part("p", "P", 1, "lacks"), lambda *given: None, time.monotonic() + 30, rows.append)
    assert [row.note for row in rows] == ["ModuleNotFoundError: No module named 'a_package_that_is_nowhere'"]


def test_the_pace_chooses_what_there_is_time_for(tools: Tools) -> None:
    training, shapes, session = tools("training_steps"), tools("shapes"), tools("session")
    sizes = shapes.rehearsal_sizes()
    case = tools("step_run").StepCase("small", sizes.base, sizes.images)
    given = session.Session("model", None, FakeClock(), sizes, time.monotonic() + 100)
    pace = training.Pace(flops_per_second=3 * case.flops / 30.0, compile_seconds=50.0)  # 30 s a contestant
    chosen, rows = pace.choose(given, case, {"eager": False, "compiled": True, "other": False, "last": False})
    assert list(chosen) == ["eager", "other", "last"]
    assert [(row.name, row.status) for row in rows] == [("compiled", "skipped")]
    assert "110 s" in rows[0].note
    timing = tools("timing").Timing(2.0, 2.0, 2.0, 1, 12.0, {}, None)
    pace.learn(case, {"compiled": timing})
    assert pace.compile_seconds == 10.0
    assert pace.flops_per_second == pytest.approx(0.7 * case.flops / 2.0)


def test_numbers_that_are_none_are_failures_and_never_written(tools: Tools, tmp_path: Path) -> None:
    rows, page = tools("rows"), tools("page")
    results = rows.Results(
        tmp_path / "r.json",
        tmp_path / "r.html",
        {"begin": "now", "rehearsal": True, "minutes": 1},
        {"model": "Steps"},
        page.make_page,
    )
    results.add(rows.Row.measured("model", "c", "bad", {"tflops": float("nan"), "rounds": 3, "mfu_percent": None}))
    results.add(rows.Row.measured("model", "c", "<good>", {"tflops": 4.0, "mfu_percent": 50.0}))
    results.set_state("model", "done", 1.5)
    data = json.loads((tmp_path / "r.json").read_text())
    assert [(row["status"], row["values"], row["note"]) for row in data["rows"]] == [
        ("failed", {"rounds": 3}, "not finite: tflops"), ("ok", {"tflops": 4.0, "mfu_percent": 50.0}, "")
    ]  # fmt: skip
    text = (tmp_path / "r.html").read_text()
    assert "nan" not in text
    assert "&lt;good&gt;" in text
    assert "50.0 %" in text
    assert 'style="width:100.00%"' in text
