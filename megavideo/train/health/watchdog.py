"""The watchdog of a rank: a run in which nothing moves says where it stands, and ends.

A rank that waits for another inside a collective cannot help itself: the call does not come back. So a thread beside
the loop ends the process when no beat has come for the limit. It tells what the rank was doing, prints the stacks of
all threads, names the ranks that hold up the others, and leaves with status 76; the launcher then ends the ranks that
cannot end by themselves, as one that is stopped (`srun --kill-on-bad-exit`; torchrun, 30 s later).

A save that is waited for may be slower than the limit, as to a store far away. While pieces of it still move, on this
rank or another, that counts as a beat: ranks tell each other by a number in the store that grows.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, NoReturn

from megavideo.errors import HUNG_STATUS
from megavideo.parallel.processes.distributed import DEFAULT_TIMEOUT
from megavideo.train.health.heartbeats import ENDED, Heartbeat, Heartbeats, Laggard, Store

# until two steps are made: kernels are compiled and tuned, groups meet, the cache of shards is empty
FIRST_STEPS_FACTOR = 3.0
# from the end of the limit until the process has ended, whatever the store and the file systems do
LEAVE_SECONDS = 40.0
SAVING = "saving"  # what a rank is doing that waits for a save
_MOST_INTERVAL_SECONDS = 10.0
_STORE_SECONDS = 5.0
_NAMED = 16
_STDERR = 2


def collective_timeout(hang_seconds: float | None) -> timedelta:
    """How long a collective may take where the watchdog ends a hang: so long that the watchdog is first to tell."""
    if hang_seconds is None:
        return DEFAULT_TIMEOUT
    return timedelta(seconds=FIRST_STEPS_FACTOR * hang_seconds + 2 * LEAVE_SECONDS)


@dataclass(frozen=True)
class Hang:
    """What a rank knew when its limit had passed. `laggards` is None where the store did not answer."""

    rank: int
    host: str
    step: int
    doing: str
    seconds: float
    laggards: tuple[Laggard, ...] | None

    def fields(self) -> dict[str, Any]:
        """The fields of a row of faults.jsonl, but for the step."""
        return {name: value for name, value in asdict(self).items() if name != "step"}

    def __str__(self) -> str:
        """The lines that are printed."""
        lines = [f"hung: rank {self.rank} on {self.host} made no step for {self.seconds:.0f} s: "
                 f"{self.doing} at step {self.step}"]  # fmt: skip
        if self.laggards is None:
            lines.append("  which rank holds up the others is not known: the store did not answer")
        elif not self.laggards:
            lines.append("  all ranks are alive, at the same step")
        else:
            lines += [f"  {laggard}" for laggard in self.laggards[:_NAMED]]
            if len(self.laggards) > _NAMED:
                lines.append(f"  and {len(self.laggards) - _NAMED} ranks more")
        return "\n".join(lines)


class Watchdog:
    """Ends this process with status 76 where no `beat` comes for `seconds`; None never does.

    Until two steps are made the limit is 3 times that. The process has ended 40 s after the limit at the latest.
    `store` is a connection that nothing else uses (`parallel.distributed.own_store`), None for one process alone.
    `report` is told of the hang on one rank, the first that is alive, or on all if the store does not answer. Time in
    which the whole process was stopped, as by `scontrol suspend`, does not count. `saved_pieces` is a number that grows
    while this rank's saves move, which puts the end off, here and on the ranks that wait for this one, as long as the
    loop is `SAVING`. Used in a `with` block around the loop.
    """

    def __init__(
        self,
        seconds: float | None,
        rank: int,
        world_size: int,
        host: str,
        report: Callable[[Hang], None],
        store: Store | None = None,
        saved_pieces: Callable[[], int] = lambda: 0,
    ) -> None:
        self._seconds = seconds
        self._rank = rank
        self._host = host
        self._report = report
        self._beats = None if store is None else Heartbeats(store, world_size)
        self._interval_seconds = min(_MOST_INTERVAL_SECONDS, (seconds or _MOST_INTERVAL_SECONDS) / 10)
        self._last = (0, "starting")  # replaced as a whole by each beat: another thread sees a new one
        self._steps: set[int] = set()
        self._count = 0
        self._saved_pieces = saved_pieces
        self._told_pieces = 0
        self._moved = 0  # what the ranks told each other of their saves
        self._hung = False
        self._found: tuple[Laggard, ...] | None = None
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"megavideo-{target.__name__.strip('_')}", daemon=True)
            for target in (self._watch, self._pulse)
        ]

    def __enter__(self) -> Watchdog:
        """Start to watch."""
        if self._seconds is not None:
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching; the other ranks are told that this one has left."""
        if self._hung:
            self._threads[0].join()  # until it ends the process: a collective failed because the others left
        self._stopping.set()
        if self._seconds is not None:
            self._last = (self._last[0], ENDED)
            for thread in self._threads:
                thread.join(1.0)  # one that hangs in the store dies with the process

    def beat(self, step: int, doing: str) -> None:
        """Say that the loop moves: it begins with `doing` ("reading", "training", "saving") at `step`."""
        if len(self._steps) <= 2:
            self._steps.add(step)
        self._last = (step, doing)

    def _limit_seconds(self) -> float:
        assert self._seconds is not None
        return self._seconds * (1.0 if len(self._steps) > 2 else FIRST_STEPS_FACTOR)

    def _watch(self) -> None:
        """Wait for the limit to pass, then end the process."""
        tick_seconds = self._interval_seconds / 4
        watched, seen, quiet_seconds, before = self._last, self._progress(), 0.0, time.monotonic()
        while not self._stopping.wait(tick_seconds):
            now, last, progress = time.monotonic(), self._last, self._progress()
            if last is not watched or progress != seen:
                watched, seen, quiet_seconds = last, progress, 0.0
            # a thread that sleeps for a moment and wakes after an hour was not the only one that was stopped
            quiet_seconds += min(now - before, 2 * tick_seconds)
            before = now
            if quiet_seconds > self._limit_seconds():
                self._end(quiet_seconds)

    def _progress(self) -> tuple[int, int]:
        """Of the save that this rank waits for, and of those that others do: a change of either is a sign of life."""
        return (self._saved_pieces() if self._last[1] == SAVING else 0), self._moved

    def _end(self, quiet_seconds: float) -> NoReturn:
        self._hung = True
        teller = threading.Thread(target=self._tell, args=(quiet_seconds,), daemon=True)
        teller.start()
        teller.join(LEAVE_SECONDS - self._interval_seconds)
        # the launcher ends the others when the first one leaves: all shall have told before
        time.sleep(self._interval_seconds)
        os._exit(HUNG_STATUS)

    def _pulse(self) -> None:
        """Write signs of life until the block ends; by a thread of its own, since a store may hang."""
        if self._beats is None:
            return
        try:
            while not self._stopping.is_set():
                self._write()
                self._exchange(self._beats)
                self._stopping.wait(self._interval_seconds)
            self._write()
        except RuntimeError as error:
            logging.getLogger(__name__).warning("no more signs of life of rank %d: %s", self._rank, error)

    def _write(self) -> None:
        assert self._beats is not None
        step, doing = self._last
        self._count += 1
        self._beats.write(Heartbeat(self._rank, self._host, step, doing, self._count, self._hung))

    def _exchange(self, beats: Heartbeats) -> None:
        """Tell that this rank's save moves, where it is waited for, and hear whether any rank's does."""
        pieces = self._saved_pieces() if self._last[1] == SAVING else self._told_pieces
        self._moved = beats.moved(pieces != self._told_pieces)
        self._told_pieces = pieces

    def _tell(self, seconds: float) -> None:
        step, doing = self._last
        os.write(_STDERR, f"hung: rank {self._rank} on {self._host}; stacks of its threads:\n".encode())
        faulthandler.dump_traceback(_STDERR, all_threads=True)
        laggards = self._laggards()
        hang = Hang(self._rank, self._host, step, doing, seconds, laggards)
        os.write(_STDERR, f"{hang}\n".encode())
        if laggards is None or self._rank == self._first_alive(laggards):
            self._report(hang)

    def _laggards(self) -> tuple[Laggard, ...] | None:
        """Ask the store, by a thread that is left behind where the machine that holds it does not answer."""
        if self._beats is None:
            return ()
        reader = threading.Thread(target=self._read, args=(self._beats,), daemon=True)
        reader.start()
        reader.join(1.5 * self._interval_seconds + _STORE_SECONDS)
        return self._found

    def _read(self, beats: Heartbeats) -> None:
        try:
            self._found = tuple(beats.laggards(self._interval_seconds))
        except RuntimeError as error:
            os.write(_STDERR, f"hung: rank {self._rank}: {error}\n".encode())

    def _first_alive(self, laggards: Sequence[Laggard]) -> int:
        gone = {laggard.rank for laggard in laggards if laggard.reason in ("silent", "ended")}
        return next(rank for rank in range(self._rank + 1) if rank not in gone)
