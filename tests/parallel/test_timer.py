"""A device is timed by what works through its queue, and is waited for once, at the end."""

from __future__ import annotations

import time

import pytest
import torch

from megavideo.parallel.machine.matmul_probe import MatmulProbe
from megavideo.parallel.machine.timer import CudaTimer, HostTimer, timer_of

GPU = torch.device("cuda", 3)


class _Stream:
    """A queue: what is put in takes its time there, whenever the host does so."""

    def __init__(self) -> None:
        self.end_ms = 0.0
        self.waits: list[float] = []


class _Event:
    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing
        self.stream: _Stream | None = None
        self.at_ms = 0.0

    def record(self, stream: _Stream) -> None:
        self.stream, self.at_ms = stream, stream.end_ms

    def synchronize(self) -> None:
        assert self.stream is not None
        self.stream.waits.append(self.at_ms)

    def elapsed_time(self, end: _Event) -> float:
        # as the driver: not of events that the device has not come to
        assert end.stream is not None and max(end.stream.waits, default=-1.0) >= end.at_ms
        return end.at_ms - self.at_ms


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> _Stream:
    """The current stream of GPU 3, whichever is the thread's current one."""
    found = {GPU: _Stream()}
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: found[device])
    return found[GPU]


def test_a_gpu_by_its_queue(stream: _Stream) -> None:
    timer = timer_of(GPU)
    assert isinstance(timer, CudaTimer)
    timer.mark()
    for took_ms in (1.25, 0.5):
        stream.end_ms += took_ms
        timer.mark()
    assert stream.waits == []  # marks do not wait
    assert timer.laps() == [1.25e-3, 0.5e-3] and stream.waits == [1.75]
    assert timer.laps() == [] and stream.waits == [1.75]  # none is kept


def test_the_host_by_its_clock() -> None:
    timer = timer_of(torch.device("cpu"))
    assert isinstance(timer, HostTimer)
    timer.mark()
    time.sleep(0.02)
    timer.mark()
    timer.mark()
    slept, nothing = timer.laps()
    assert slept >= 0.02 > nothing
    assert timer.laps() == []


def test_the_probe_takes_the_best_of_its_products(stream: _Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is not timed; none is waited for before the last is in the queue."""
    probe = MatmulProbe(torch.device("cpu"))
    monkeypatch.setattr(probe, "_device", GPU)
    took_ms = iter((900.0, 3.0, 2.0, 4.0))

    def product() -> torch.Tensor:
        assert stream.waits == []
        stream.end_ms += next(took_ms)
        return torch.empty(0)

    monkeypatch.setattr(probe, "_product", product)
    assert probe.seconds() == pytest.approx(2e-3)
