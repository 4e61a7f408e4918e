"""Jobs by processes: what a death, an error and an interrupt cost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megavideo.data.job_pool import Work, done_by_processes
from megavideo.errors import DataError

_FOLDER: list[Path] = []
MAIN = """
import signal
import sys
from pathlib import Path
from megavideo.data.job_pool import Work, done_by_processes
from tests.data.test_job_pool import begin, do

if __name__ == "__main__":
    # a shell that starts tests in the background has interrupts ignored by all that they start
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for job in done_by_processes(["sleep"] * 6, Work(do, begin, (Path(sys.argv[1]),)), 2, print):
        print(job)
"""


def begin(folder: Path) -> None:
    """What a worker is told."""
    _FOLDER.append(folder)


def do(job: str) -> None:
    """A job by its name; it leaves a line."""
    (folder,) = _FOLDER
    with (folder / job).open("a") as file:
        file.write(f"{os.getpid()}\n")
    times = len((folder / job).read_text().splitlines())
    if job == "deadly" or (job == "dies once" and times == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "refused":
        raise DataError("no room")
    if job == "sleep":
        time.sleep(600)


def test_a_job_that_kills_is_told_and_the_others_are_done(tmp_path: Path) -> None:
    names = ["a", "b", "dies once", "c", "deadly", "d", "e", "f"]
    told: list[str] = []
    done = list(done_by_processes(names, Work(do, begin, (tmp_path,)), 2, told.append))
    assert sorted(done) == sorted(names) and told == ["deadly"]
    assert len((tmp_path / "deadly").read_text().splitlines()) >= 2  # alone at last


def test_an_error_is_raised_and_ends_the_workers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no room"):
        list(done_by_processes(["a", "refused", *"bcdefgh"], Work(do, begin, (tmp_path,)), 1, print))
    assert not (tmp_path / "h").exists()
    assert not psutil.pid_exists(int((tmp_path / "a").read_text()))


def test_an_interrupt_does_not_wait_for_jobs(tmp_path: Path, repo_root: Path) -> None:
    (tmp_path / "main.py").write_text(MAIN)
    environment = os.environ | {"PYTHONPATH": str(repo_root)}
    words = [sys.executable, str(tmp_path / "main.py"), str(tmp_path)]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    begun, deadline = tmp_path / "sleep", time.monotonic() + 120
    while (not begun.exists() or len(begun.read_text().splitlines()) < 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [psutil.Process(int(pid)) for pid in begun.read_text().split()]
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == -signal.SIGINT
    assert not psutil.wait_procs(workers, timeout=30)[1]
