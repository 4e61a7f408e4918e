"""One worker that makes shards ready: a forked process, or a thread of the rank, at the other end of a pipe.

A forked one touches neither torch nor a device, opens connections to the store of its own, and lets go of every socket
that the rank had open, so that a rank that dies is seen to be dead by its peers.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import select
import signal
import stat
import threading
import time
import traceback
import warnings
from collections import Counter, deque
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from megavideo.data.stream.shard_files import ShardFiles, Signature
from megavideo.errors import MegavideoError, StoreUnreachable
from megavideo.observe.log import LOGGER_NAME

_TELL_SECONDS = 0.5
_END_SECONDS = 2.0
_AGAIN = "start the run again: it goes on from its last checkpoint"


class _RankGone(BaseException):
    """In a worker: its rank closed the pipe, died, or ended it. Passes through everything, and notes no failure."""


class Worker:
    """The rank's side of a worker: its pipe, and the shards that it was given and has not answered, in order."""

    name = "data worker"

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.jobs: deque[int] = deque()
        self._heard = time.monotonic()

    def give(self, number: int) -> None:
        """Hand it a shard."""
        if not self.jobs:
            self._heard = time.monotonic()
        self.jobs.append(number)
        try:
            self.connection.send(number)
        except OSError as error:
            raise self._died() from error

    def receive(self) -> tuple[Any, ...]:
        """Its next message; StoreUnreachable if it died."""
        try:
            message: tuple[Any, ...] = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        self._heard = time.monotonic()
        return message

    def check(self, patience_seconds: float) -> None:
        """Raise StoreUnreachable if it hangs."""
        silent = time.monotonic() - self._heard
        if self.jobs and silent > patience_seconds:
            raise StoreUnreachable(
                f"{self.name} has not moved for {silent:.0f} s. Remedy: look at the store and at the disk of "
                f"data.cache, and {_AGAIN}"
            )

    def close(self) -> None:
        """End it."""
        self.connection.close()

    def _died(self) -> StoreUnreachable:
        return StoreUnreachable(f"{self.name} ended. Remedy: {_AGAIN}")


class ThreadWorker(Worker):
    """A thread of the rank: reading overlaps with fetching, in one interpreter. It shares the counts of the rank."""

    name = "the thread that fetches shards"

    def __init__(self, files: ShardFiles) -> None:
        ours, theirs = multiprocessing.Pipe()
        super().__init__(ours)
        self._thread = threading.Thread(
            target=_serve, args=(files, theirs, _Teller(theirs), False), name="megavideo-data", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Close the pipe, at which the thread ends; one that waits for the store is left to find out."""
        super().close()
        self._thread.join(_END_SECONDS)


class ForkedWorker(Worker):
    """A process forked from the rank."""

    def __init__(self, files: ShardFiles) -> None:
        ours, theirs = multiprocessing.Pipe()
        super().__init__(ours)
        process = multiprocessing.get_context("fork").Process(
            target=_work, args=(files, theirs), name="megavideo-data", daemon=True
        )
        with warnings.catch_warnings():
            # Python warns of forks beside threads, for what a child may do then; this one does none of that.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        theirs.close()
        self._process = process
        self.name = f"data worker {process.pid}"

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join(_END_SECONDS)
        if self._process.is_alive():
            self._process.kill()  # its locks the kernel frees, its temporary file the next fetch removes
            self._process.join()
        super().close()

    def _died(self) -> StoreUnreachable:
        self._process.join(1)
        code = self._process.exitcode
        how = f"was ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with status {code}"
        return StoreUnreachable(f"{self.name} {how}. Remedy: if memory ran out, lower data.workers; {_AGAIN}")


class _Teller(logging.Handler):
    """Sends the rank signs of life, and log records as text."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._told = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        self.send(("log", record.levelno, record.getMessage()))

    def moving(self) -> None:
        """Send a sign of life now and then."""
        now = time.monotonic()
        if now - self._told > _TELL_SECONDS:
            self._told = now
            self.send(("moving",))

    def send(self, message: tuple[Any, ...]) -> None:
        """Send anything."""
        try:
            self._connection.send(message)
        except OSError as error:
            raise _RankGone from error


def _serve(files: ShardFiles, connection: Connection, teller: _Teller, own_counts: bool) -> None:
    """Answer until the rank's end of the pipe closes: shard by shard, its signature or its failure, and counts."""
    before = files.counts
    with connection, suppress(_RankGone, EOFError, OSError):
        while True:
            job: int = connection.recv()
            answer: tuple[str, int, Signature | str]
            try:
                answer = "ready", job, files.check(job, teller.moving)
            except MegavideoError as error:
                kind = "unreachable" if isinstance(error, StoreUnreachable) else "failed"
                answer = kind, job, str(error)
            except _RankGone:
                return
            except BaseException:  # noqa: BLE001 - told to the rank, which raises it
                teller.send(("defect", traceback.format_exc()))
                return
            counts = files.counts
            teller.send((*answer, counts - before if own_counts else Counter()))
            before = counts


def _work(files: ShardFiles, connection: Connection) -> None:
    """What a forked process does."""
    gc.freeze()  # what came from the rank is left alone: its finalizers are the rank's
    _leave_sockets(connection.fileno())
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the rank decides, and closes the pipe
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGUSR2, _end)
    threading.Thread(target=_end_with_rank, args=(connection.fileno(),), daemon=True).start()
    threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()
    teller = _Teller(connection)
    logger = logging.getLogger(LOGGER_NAME)
    logger.handlers, logger.propagate = [teller], False  # the rank's handlers may be held by a thread that is not here
    _serve(files, connection, teller, True)


def _end_with_rank(fd: int) -> None:
    """End this process at once when the rank's end of the pipe is gone, whatever the process waits for."""
    poll = select.poll()
    poll.register(fd, 0)  # a hang-up is always told
    poll.poll()
    os._exit(1)


def _end_when_told(rank_pid: int) -> None:
    """Interrupt the work when the rank itself asks for it.

    Slurm sends SIGTERM to every process of a task, but the rank still needs its workers for as long as it saves.
    """
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != rank_pid:
        pass
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)


def _end(number: int, frame: object) -> None:
    raise _RankGone


def _leave_sockets(kept: int) -> None:
    """Put the null device in the place of every socket but `kept`.

    Its number stays taken: a later close by an object that came from the rank cannot hit a file of this process.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        with suppress(OSError):  # the listing's own descriptor is gone
            if fd > 2 and fd != kept and stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.dup2(null, fd, inheritable=False)
    os.close(null)
