"""Time on a device, and contests: what is compared takes turns in one loop, under the same clocks and heat."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from megavideo.parallel.machine.timer import CudaTimer, HostTimer, Timer

_FEW_ROUNDS = 3
Lap = Callable[[str], None]
# what is measured; it may call its argument with the name of each stretch that it has come to the end of
Run = Callable[[Lap], object]


class Clock(Timer, Protocol):
    """Times stretches of a device's work, and tells what they had in memory."""

    def wait(self) -> None:
        """Wait until the device has nothing left to do."""
        ...

    def memory(self) -> int | None:
        """The most bytes that were allocated on the device since this was last asked; None where nothing counts."""
        ...


class HostClock(HostTimer):
    """For a device that has done its work when the call returns."""

    def wait(self) -> None:
        """Nothing to wait for."""

    def memory(self) -> int | None:
        """Not counted."""
        return None


class EventClock(CudaTimer):
    """For a GPU, by events in its current stream."""

    def wait(self) -> None:
        """See `Clock.wait`."""
        torch.cuda.synchronize()

    def memory(self) -> int | None:
        """Of torch's own allocator."""
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak


def clock_of(device: torch.device) -> Clock:
    """The clock of a device."""
    return EventClock(device) if device.type == "cuda" else HostClock()


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: median, least and most over `rounds`, and the medians of its laps.

    `first_seconds` is what the first run of all took on the host's clock, with compilation where there was any, and
    `peak_bytes` what the second had allocated at once.
    """

    median: float
    low: float
    high: float
    rounds: int
    first_seconds: float
    laps: dict[str, float]
    peak_bytes: int | None

    @property
    def spread(self) -> float:
        """Between least and most, relative to the median."""
        return (self.high - self.low) / self.median


class DeviceLostError(RuntimeError):
    """An error after which a process cannot use its device any more, and what was running: `name`."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


@dataclass
class _Entry:
    run: Run
    first_seconds: float
    repeats: int
    estimate: float
    peak_bytes: int | None
    totals: list[float] = field(default_factory=list)
    laps: list[dict[str, float]] = field(default_factory=list)


def contest(
    contestants: Mapping[str, Run],
    clock: Clock,
    seconds: float,
    limit: float,
    *,
    most_rounds: int = 9,
    shortest: float = 5e-3,
    trying: Callable[[str], None] = lambda name: None,
) -> dict[str, Timing | str]:
    """Time every contestant, in turns, for about `seconds`: its times, or the text of the error that ended it.

    After two runs of each to warm up there is one round at least, and three where they fit `limit` seconds. What takes
    less than `shortest` is run several times between two marks. `trying` is told who comes next. Raises
    DeviceLostError.
    """
    begin = time.monotonic()
    results: dict[str, Timing | str] = {}
    ready: dict[str, _Entry] = {}
    for name, run in contestants.items():
        trying(name)
        entry = _guarded(name, results, clock, partial(_warm_up, run, clock, shortest))
        if entry is not None:
            ready[name] = entry
    for number in range(most_rounds):
        names = [name for name in ready if name not in results]
        needed = sum(ready[name].estimate * ready[name].repeats for name in names)
        over = time.monotonic() - begin + needed > (seconds if number >= _FEW_ROUNDS else limit)
        if not names or (number and over):
            break
        for name in names if number % 2 == 0 else reversed(names):
            trying(name)
            _guarded(name, results, clock, partial(_measure, ready[name], clock))
        clock.wait()
    for name, entry in ready.items():
        if name not in results:
            results[name] = _timing(entry)
    return {name: results[name] for name in contestants}


def describe(error: BaseException) -> str:
    """The kind of an error and the first line that it says."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:300]}"


def free_memory() -> None:
    """Give back to the device what nothing refers to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _guarded(name: str, results: dict[str, Timing | str], clock: Clock, act: Callable[[], Any]) -> Any:
    """What `act` returns; None where it raises, with the error's text among the results."""
    try:
        return act()
    except Exception as error:  # noqa: BLE001  what fails is a result, and the others go on
        text = describe(error)
    results[name] = text
    try:
        clock.laps()  # those of what has failed
        clock.wait()  # an error that spoils the device is raised again by every later call
        free_memory()  # after the handler above, whose traceback held on to what was allocated
    except RuntimeError as error:
        raise DeviceLostError(name, text) from error
    return None


def _warm_up(run: Run, clock: Clock, shortest: float) -> _Entry:
    begin = time.perf_counter()
    run(_no_lap)
    clock.wait()
    first_seconds = time.perf_counter() - begin
    clock.memory()
    clock.mark()
    run(_no_lap)
    clock.mark()
    estimate = max(clock.laps()[0], 1e-6)
    peak = clock.memory()
    repeats = max(1, min(100, round(shortest / estimate)))
    return _Entry(run, first_seconds, repeats, estimate, peak)


def _no_lap(name: str) -> None:
    pass


def _measure(entry: _Entry, clock: Clock) -> None:
    names: list[str] = []

    def lap(name: str) -> None:
        clock.mark()
        names.append(name)

    clock.mark()
    for _ in range(entry.repeats):
        entry.run(lap)
    lap("")
    stretches = clock.laps()
    sums: dict[str, float] = {}
    for name, seconds in zip(names, stretches, strict=True):
        sums[name] = sums.get(name, 0.0) + seconds / entry.repeats
    entry.totals.append(sum(stretches) / entry.repeats)
    entry.laps.append(sums)


def _timing(entry: _Entry) -> Timing:
    names = [name for name in entry.laps[0] if name]
    return Timing(
        median=statistics.median(entry.totals),
        low=min(entry.totals),
        high=max(entry.totals),
        rounds=len(entry.totals),
        first_seconds=entry.first_seconds,
        laps={name: statistics.median([sums[name] for sums in entry.laps]) for name in names},
        peak_bytes=entry.peak_bytes,
    )
