"""Folders for what is not whole yet; those whose owners were killed are removed by the next one."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megavideo.data.storage.local import LocalStorage
from megavideo.data.storage.locks import try_lock
from megavideo.data.storage.protocol import Storage
from megavideo.errors import DataError
from megavideo.observe.whole_file import TEMPORARY_PREFIX

_PREFIX = ".encode-"
_LOCK_NAME = "lock"
_OLD_SECONDS = 3600.0  # after so long, a file is no longer just being written, nor a folder without a lock made


@contextmanager
def staging_folder(storage: Storage) -> Iterator[Path]:
    """A folder that is locked while this process lives and removed afterwards.

    A local place stages in itself, so that its own disk must hold the shards and no other. Raises DataError where no
    folder can be made.
    """
    home = storage.folder if isinstance(storage, LocalStorage) else Path(tempfile.gettempdir())
    is_new = not home.exists()
    try:
        home.mkdir(parents=True, exist_ok=True)
        for folder in home.glob(f"{_PREFIX}*"):
            _remove_stale(folder)
        if isinstance(storage, LocalStorage):
            _remove_unwritten(home)
        folder, lock = _locked_folder(home)
    except OSError as error:
        raise DataError(f"{home}: cannot be written ({error.strerror}). Remedy: check rights and free space") from error
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)
        if is_new and not any(home.iterdir()):
            home.rmdir()


def _locked_folder(home: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=home))
        lock = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        # Another process may have taken it for a stale one before it was locked.
        if try_lock(lock) and (folder / _LOCK_NAME).exists():
            return folder, lock
        os.close(lock)


def _remove_stale(folder: Path) -> None:
    try:
        lock = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        if _is_old(folder):
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


def _remove_unwritten(home: Path) -> None:
    """Remove what is left of files whose writers were killed."""
    for path in home.rglob(f"{TEMPORARY_PREFIX}*"):
        if _is_old(path):
            path.unlink(missing_ok=True)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _OLD_SECONDS
    except FileNotFoundError:
        return False
