"""Hangs of real processes end within the stated time, and name who held up the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from megavideo.errors import HUNG_STATUS
from megavideo.parallel.processes.distributed import free_port
from megavideo.testing.launch import Finished, Launched
from megavideo.train.health.heartbeats import ENDED, Heartbeat, compare
from megavideo.train.health.watchdog import FIRST_STEPS_FACTOR, LEAVE_SECONDS, collective_timeout

SECONDS = 2.0
TORCHRUN_KILLS_SECONDS = 30.0


def _row(folder: Path) -> dict[str, Any]:
    (line,) = (folder / "faults.jsonl").read_text().splitlines()
    row: dict[str, Any] = json.loads(line)
    return row


def _start(folder: Path, port: int, rank: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with (folder / f"err{rank}.txt").open("w") as err:
        command = [sys.executable, "-m", "tests.train.hanging", str(folder), "steps", str(SECONDS)]
        return subprocess.Popen(command, env=environment, stderr=err, cwd=Path(__file__).parents[2])


def _wait_for(path: Path, lines: int) -> None:
    end = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < end
        time.sleep(0.02)


# rank 0 holds the store: if it stops, the store is gone with it
@pytest.mark.parametrize("stopped", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_rank_whose_peer_is_stopped_ends_and_names_it(tmp_path: Path, stopped: int) -> None:
    port, other = free_port(), 1 - stopped
    ranks = [_start(tmp_path, port, rank) for rank in range(2)]
    try:
        _wait_for(tmp_path / "0.txt", 10)
        ranks[stopped].send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        assert ranks[other].wait(SECONDS + LEAVE_SECONDS) == HUNG_STATUS
        took = time.monotonic() - begin
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    print(f"limit {SECONDS} s, ended after {took:.1f} s")
    err = (tmp_path / f"err{other}.txt").read_text()
    assert took > SECONDS and f"hung: rank {other} on " in err and "training at step" in err
    assert "hanging.py" in err and "all_reduce" in err  # the stacks
    row = _row(tmp_path)
    steps = len((tmp_path / f"{other}.txt").read_text().splitlines())
    assert (row["kind"], row["rank"], row["doing"], row["step"]) == ("hang", other, "training", steps)
    if stopped == 1:
        assert "rank 1 on " in err and ": no sign of life (stopped, dead or cut off)" in err
        assert [(one["rank"], one["reason"]) for one in row["laggards"]] == [(1, "silent")]
    else:
        assert "the store did not answer" in err
        assert row["laggards"] is None


@pytest.mark.slow
def test_torchrun_ends_a_stopped_rank(tmp_path: Path) -> None:
    words = [str(tmp_path), "steps", str(SECONDS)]
    with Launched("tests.train.hanging", words, tmp_path / "logs", processes=2) as launched:
        launched.wait_for_lines(tmp_path / "0.txt", 10)
        launched.signal_rank(1, signal.SIGSTOP)
        begin = time.monotonic()
        finished = launched.finish()
        took = time.monotonic() - begin
    print(f"limit {SECONDS} s, ended after {took:.1f} s")
    assert finished.status == 1  # torchrun's own
    assert f"exitcode  : {HUNG_STATUS}" in finished.err
    assert SECONDS < took < SECONDS + LEAVE_SECONDS + TORCHRUN_KILLS_SECONDS
    assert [(one["rank"], one["reason"]) for one in _row(tmp_path)["laggards"]] == [(1, "silent")]


@pytest.mark.slow
def test_a_rank_that_is_alive_and_elsewhere_is_named_by_both(tmp_path: Path) -> None:
    words = [str(tmp_path), "reading", str(SECONDS)]
    with Launched("tests.train.hanging", words, tmp_path / "logs", processes=2) as launched:
        finished = launched.finish()
    _ended_by_watchdogs(finished)
    for words_of_a_rank in ("reading at step 5", "training at step 5"):
        assert words_of_a_rank in finished.err
    row = _row(tmp_path)
    assert (row["rank"], row["step"]) == (0, 5)
    assert [(one["rank"], one["doing"]) for one in row["laggards"]] == [(0, "training"), (1, "reading")]


@pytest.mark.slow
def test_a_save_that_is_slow_and_moves_is_no_hang(tmp_path: Path) -> None:
    """Rank 1 takes three times the limit, and rank 0 waits for it without a piece of its own that moves."""
    words = [str(tmp_path), "slow_store", str(SECONDS)]
    with Launched("tests.train.hanging", words, tmp_path / "logs", processes=2) as launched:
        finished = launched.finish()
    assert finished.status == 0, finished.err
    assert not (tmp_path / "faults.jsonl").exists()
    assert (tmp_path / "store" / "step_00000005" / "manifest.json").is_file()


def test_a_save_that_is_stuck_is_a_hang_of_all_that_wait_for_it(tmp_path: Path) -> None:
    words = [str(tmp_path), "stuck_store", str(SECONDS)]
    with Launched("tests.train.hanging", words, tmp_path / "logs", processes=2) as launched:
        finished = launched.finish()
    _ended_by_watchdogs(finished)
    row = _row(tmp_path)
    assert (row["kind"], row["rank"], row["doing"], row["step"]) == ("hang", 0, "saving", 5)


def test_a_process_alone_gets_longer_for_its_first_steps_and_may_be_suspended(tmp_path: Path) -> None:
    with Launched("tests.train.hanging", [str(tmp_path), "alone", "0.5"], tmp_path / "logs") as launched:
        launched.wait_for_lines(tmp_path / "0.txt", 1)
        launched.send_signal(signal.SIGSTOP)
        time.sleep(3)
        launched.send_signal(signal.SIGCONT)
        resumed = time.monotonic()
        finished = launched.finish()
    assert finished.status == HUNG_STATUS
    assert time.monotonic() - resumed > 0.5 * FIRST_STEPS_FACTOR / 2
    assert "starting at step 0" in finished.err
    assert _row(tmp_path)["doing"] == "starting"


def _ended_by_watchdogs(finished: Finished) -> None:
    """Both ranks found the hang. torchrun ends the second once the first has left, which may be before it has too."""
    assert f"exitcode  : {HUNG_STATUS}" in finished.err
    for rank in range(2):
        assert f"hung: rank {rank} on " in finished.err


def _beats(*rows: tuple[int, str, int]) -> dict[int, Heartbeat]:
    return {rank: Heartbeat(rank, f"n{rank}", step, doing, count) for rank, (step, doing, count) in enumerate(rows)}


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        # a rank that writes no more, though its step is the latest
        ([(7, "t", 1), (8, "t", 1), (7, "t", 1)], [(7, "t", 2), (8, "t", 1), (7, "t", 2)], [(1, "silent")]),
        # the gone are named before those behind, who may wait for them
        ([(7, "t", 1), (8, "t", 1), (8, ENDED, 1)], [(7, "t", 2), (8, "t", 2), (8, ENDED, 1)], [(2, "ended")]),
        ([(7, "t", 1), (8, "t", 1), (8, "t", 1)], [(7, "t", 2), (8, "t", 2), (8, "t", 2)], [(0, "behind")]),
        ([(8, "r", 1), (8, "t", 1), (8, "t", 1)], [(8, "r", 2), (8, "t", 2), (8, "t", 2)], [(0, "elsewhere")]),
        ([(8, "r", 1), (8, "t", 1)], [(8, "r", 2), (8, "t", 2)], [(0, "elsewhere"), (1, "elsewhere")]),
        ([(8, "t", 1), (8, "t", 1), (8, "t", 1)], [(8, "t", 2), (8, "t", 2), (8, "t", 2)], []),
    ],
)
def test_who_holds_up_the_others(before: Any, after: Any, named: list[tuple[int, str]]) -> None:
    found = compare(_beats(*before), _beats(*after), len(before))
    assert [(laggard.rank, laggard.reason) for laggard in found] == named


def test_ranks_that_left_after_they_told_are_not_silent_and_one_that_never_wrote_is() -> None:
    beats = {0: Heartbeat(0, "a", 3, "training", 4, hung=True), 1: Heartbeat(1, "b", 3, "training", 4)}
    found = compare(beats, beats, 3)
    assert [(laggard.rank, laggard.reason) for laggard in found] == [(1, "silent"), (2, "silent")]
    assert "never told its name" in str(found[1])


def test_collectives_wait_longer_than_the_watchdog() -> None:
    assert collective_timeout(100.0) > timedelta(seconds=100 * FIRST_STEPS_FACTOR + LEAVE_SECONDS)
    assert collective_timeout(None) == timedelta(minutes=10)
