"""Ranks, which `become_rank` makes of forked processes, end with the process that asked for them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

SECONDS = 120.0


def wait_until(holds: Callable[[], bool], seconds: float = SECONDS) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def test_ranks_of_a_killed_process_end(tmp_path: Path) -> None:
    pids = [tmp_path / f"{rank}.pid" for rank in range(2)]
    command = [sys.executable, "-m", "tests.parallel.abandoned", str(tmp_path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as parent:
        try:
            assert wait_until(lambda: all(path.exists() and path.read_text() for path in pids))
            ranks = [psutil.Process(int(path.read_text())) for path in pids]
            assert all(rank.is_running() for rank in ranks)
        finally:
            parent.kill()
    begin = time.monotonic()
    left = psutil.wait_procs(ranks, timeout=20.0)[1]
    for rank in left:
        rank.kill()
    print(f"the ranks had ended {time.monotonic() - begin:.2f} s after the process that started them")
    assert left == []
