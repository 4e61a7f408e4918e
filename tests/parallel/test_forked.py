"""Ranks, which `become_rank` makes of forked processes, end with the process that asked for them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from megavideo.parallel.processes.distributed import read_launch
from megavideo.parallel.processes.forked import name_rank, stay_on_this_machine

SECONDS = 120.0


def wait_until(holds: Callable[[], bool], seconds: float = SECONDS) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


@pytest.mark.parametrize(
    "start",
    [
        {},
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "gpu[07-08]"},
        {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "5", "WORLD_SIZE": "8"},
    ],
    ids=["alone", "in a job of several tasks", "under torchrun"],
)
def test_ranks_are_their_own_wherever_their_parent_was_started(start: dict[str, str]) -> None:
    environment = start | {"SLURM_JOB_ID": "7"}
    name_rank(environment, 1, 2, 4321)
    assert read_launch(environment) == (1, 1, 2)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("127.0.0.1", "4321")
    assert "TORCHELASTIC_USE_AGENT_STORE" not in environment
    assert environment["GLOO_SOCKET_IFNAME"].startswith("lo")


def test_an_interface_that_is_named_stays() -> None:
    environment = {"GLOO_SOCKET_IFNAME": "eth7"}
    stay_on_this_machine(environment)
    assert environment == {"GLOO_SOCKET_IFNAME": "eth7"}


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
