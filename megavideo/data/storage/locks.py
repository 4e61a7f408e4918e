"""Locks between the processes of a machine that end with their owner and are waited for only so long."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from megavideo.errors import DataError

_POLL_SECONDS = 0.02


def try_lock(fd: int) -> bool:
    """Take the lock of an open file if nobody has it. The kernel frees it when its owner closes the file or dies."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path, patience_seconds: float, moving: Callable[[], object] | None = None) -> Iterator[int]:
    """Hold the lock file `path`, made if need be, and give its descriptor.

    The owner is waited for while what `moving` returns keeps changing, and `patience_seconds` beyond; then DataError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        begin = last_move = time.monotonic()
        state = moving() if moving else None
        while not try_lock(fd):
            time.sleep(_POLL_SECONDS)
            now, before = time.monotonic(), state
            state = moving() if moving else None
            if state != before:
                last_move = now
            if now - last_move > patience_seconds:
                raise DataError(
                    f"{path}: another process has held this lock for {now - begin:.0f} s and does not move. "
                    "Remedy: end the run that hangs on this machine, or give data.cache another folder"
                )
        yield fd
    finally:
        os.close(fd)
