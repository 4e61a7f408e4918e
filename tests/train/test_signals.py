"""Requests to stop: remembered, told by name, and repeated SIGTERM ends the process; in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megavideo.testing.launch import Launched
from megavideo.train.health.signals import StopRequest

_SAY_WHEN = """
import sys, time
from megavideo.train.health.signals import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while stop.requested is None:
        time.sleep(0.01)
    print(stop.requested, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def asked() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", _SAY_WHEN], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_the_first_signal_is_remembered_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    with StopRequest() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == "SIGUSR1"
    assert stop.requested == "SIGUSR1"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before


def test_a_second_sigterm_ends_the_process_unless_it_is_the_first_one_handed_on(
    asked: subprocess.Popen[str],
) -> None:
    asked.send_signal(signal.SIGTERM)
    assert asked.stdout is not None
    assert asked.stdout.readline() == "SIGTERM\n"
    asked.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        asked.wait(5.2)
    asked.send_signal(signal.SIGTERM)
    assert asked.wait(5) == -signal.SIGTERM


def test_torchrun_hands_sigterm_on_to_ranks_that_then_end_by_themselves(tmp_path: Path) -> None:
    with Launched("tests.train.stopping", [str(tmp_path)], tmp_path / "logs", processes=2) as launched:
        for rank in range(2):
            launched.wait_for_lines(tmp_path / f"{rank}.txt", 1)
        launched.send_signal(signal.SIGTERM)
        finished = launched.finish()
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["ready\nSIGTERM\nsaved\n"] * 2
    assert finished.status == 1  # torchrun's own, whatever the ranks ended with
