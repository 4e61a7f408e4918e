"""Shards made ready ahead of their use by workers; whatever goes wrong in one is raised in the rank."""

from __future__ import annotations

import logging
import threading
from collections import deque
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

from megavideo.data.stream.counts import zero_counts
from megavideo.data.stream.shard_files import ShardFiles
from megavideo.data.stream.workers import ForkedWorker, ThreadWorker, Worker
from megavideo.errors import DataError, StoreUnreachable

_POLL_SECONDS = 0.1
_AT_ONCE = 2  # shards given to a worker: one that it fetches and the next, so that it never idles


class Stopped(Exception):
    """The workers were told to stop while a shard was waited for."""


class ShardWorkers:
    """`num_processes` forked processes that make shards of `files` ready, or a thread of this one for 0.

    `patience_seconds` is how long a worker may be silent before it counts as hanging. `counts` adds up what the
    processes counted. All but `stop` is for one thread.
    """

    def __init__(self, files: ShardFiles, num_processes: int, patience_seconds: float) -> None:
        self.counts = zero_counts()
        self._files = files
        self._patience_seconds = patience_seconds
        self._stopping = threading.Event()
        self._queue: deque[int] = deque()
        self._failures: list[DataError] = []
        self._workers: list[Worker] = []
        for _ in range(num_processes):
            self._workers.append(ForkedWorker(files))
        if not num_processes:
            self._workers.append(ThreadWorker(files))

    @property
    def wants_more(self) -> bool:
        """True where less is asked for than the workers can have under way."""
        return len(self._queue) + sum(len(worker.jobs) for worker in self._workers) < _AT_ONCE * len(self._workers)

    def request(self, number: int) -> None:
        """Ask for a shard unless that was done already; returns at once."""
        if not self._is_asked(number):
            self._queue.append(number)
        self._hand_out()

    def ensure(self, number: int) -> None:
        """Return once the shard is ready and trusted.

        Raises the DataError of the first shard that a worker failed at, and StoreUnreachable, which asks for another
        start as the loss of a rank does, for a worker that died or hangs.
        """
        with suppress(ValueError):
            self._queue.remove(number)
            self._queue.appendleft(number)
        self.request(number)
        while self._is_asked(number):
            if self._stopping.is_set():
                raise Stopped
            self._raise_failure()  # of a shard that will be needed: not to be waited out
            self._receive(_POLL_SECONDS)
            for worker in self._workers:
                worker.check(self._patience_seconds)
            self._hand_out()
        self._raise_failure()

    def stop(self) -> None:
        """Make a thread that waits in `ensure` give up."""
        self._stopping.set()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.close()

    def _is_asked(self, number: int) -> bool:
        return number in self._queue or any(number in worker.jobs for worker in self._workers)

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures[0]

    def _hand_out(self) -> None:
        self._receive(0.0)
        while self._queue:
            worker = min(self._workers, key=lambda worker: len(worker.jobs))
            if len(worker.jobs) >= _AT_ONCE:
                return
            worker.give(self._queue.popleft())

    def _receive(self, timeout_seconds: float) -> None:
        ready = wait([worker.connection for worker in self._workers], timeout_seconds)
        for worker in self._workers:
            if worker.connection in ready:
                self._take(worker, worker.receive())

    def _take(self, worker: Worker, message: tuple[Any, ...]) -> None:
        kind, *values = message
        if kind == "log":
            level, text = values
            logging.getLogger(__name__).log(level, "%s", text)
        elif kind == "defect":
            raise RuntimeError(f"{worker.name} met a defect of megavideo:\n{values[0]}")
        elif kind != "moving":
            number, result, counts = values
            worker.jobs.remove(number)
            self.counts.update(counts)
            if kind == "ready":
                self._files.trust(number, result)
            else:
                self._failures.append((StoreUnreachable if kind == "unreachable" else DataError)(result))
