"""Time between points in the work of a device: a GPU's is queued, so the host's clock alone tells nothing of it."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Protocol

import torch


class Timer(Protocol):
    """Marks points in the work of one device, and tells the time between them."""

    def mark(self) -> None:
        """Mark the point at which all work given to the device so far is done. Returns at once."""
        ...

    def laps(self) -> list[float]:
        """Seconds from each mark to the next, of which it keeps none; waits until the device has come to the last."""
        ...


class HostTimer:
    """Of work that is done when the call that asked for it returns."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> None:
        """Now."""
        self._marks.append(time.perf_counter())

    def laps(self) -> list[float]:
        """By the host's clock."""
        marks, self._marks = self._marks, []
        return [after - before for before, after in pairwise(marks)]


class CudaTimer:
    """Of work in a GPU's current stream, by events in it (resolution 0.5 us)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """Where the calling thread's current stream on the device has got to."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append(event)

    def laps(self) -> list[float]:
        """By the GPU's clock."""
        marks, self._marks = self._marks, []
        if marks:
            marks[-1].synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]


def timer_of(device: torch.device) -> Timer:
    """A timer of work on `device`."""
    return CudaTimer(device) if device.type == "cuda" else HostTimer()
