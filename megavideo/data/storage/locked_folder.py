"""Folders for what is not kept; those whose owners were killed are removed by the next one."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megavideo.data.storage.locks import try_lock

_LOCK_NAME = "lock"
_OLD_SECONDS = 3600.0  # after so long, a file is no longer just being written, nor a folder without a lock made


@contextmanager
def locked_folder(home: Path, prefix: str) -> Iterator[Path]:
    """A folder in `home`, its name beginning with `prefix`, locked while this process lives and removed afterwards.

    Others of that prefix that nobody holds any more are removed first. Raises OSError where none can be made.
    """
    home.mkdir(parents=True, exist_ok=True)
    for folder in home.glob(f"{prefix}*"):
        _remove_stale(folder)
    folder, lock = _made(home, prefix)
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def is_old(path: Path) -> bool:
    """True where a file was last written so long ago that its writer has gone."""
    try:
        return time.time() - path.stat().st_mtime > _OLD_SECONDS
    except FileNotFoundError:
        return False


def _made(home: Path, prefix: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
        lock = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        # Another process may have taken it for a stale one before it was locked.
        if try_lock(lock) and (folder / _LOCK_NAME).exists():
            return folder, lock
        os.close(lock)


def _remove_stale(folder: Path) -> None:
    try:
        lock = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        if is_old(folder):
            shutil.rmtree(folder, ignore_errors=True)
        return
    except OSError:
        return  # another user's
    try:
        if try_lock(lock):
            _remove(folder)
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    """Remove a folder, its lock last: whoever is killed meanwhile leaves one that the next can take."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _LOCK_NAME:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
