"""Fetched shards of this machine: a bounded folder that all of its processes share.

A file gets its name only after its content was checked, so that nothing wrong is found under a name. Each is fetched
once: the others wait for the lock of the one who fetches. What was used longest ago makes room; a reader keeps the
file that it has open even when the name goes, so nothing in use is lost. The folder itself is the index, with a file's
access time as its last use: there is no list that could be damaged.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from megavideo.border.json_text import parse_json
from megavideo.border.refused import Refused
from megavideo.data.storage.locks import locked, try_lock
from megavideo.data.stream.counts import zero_counts
from megavideo.errors import DataError, StoreUnreachable
from megavideo.observe.whole_file import TEMPORARY_PREFIX

# The cache has a folder of its own inside the one that the user names: nothing else is ever removed.
FOLDER_NAME = "megavideo-shards"
_LOCKS = ".locks"
_FREE_SHARE, _FREE_MOST_BYTES = 0.02, 5e9  # of the disk, left free where no bound is set
_TOUCH_NS = 1_000_000_000
_POLL_SECONDS = 0.05
_ATTEMPTS = 2


class DamagedError(DataError):
    """Content that is not what its index says; a second fetch may bring the right one."""


@dataclass(frozen=True)
class Wanted:
    """A file to be had: its name in the cache, its bytes, what writes it, and what raises DataError if it is wrong."""

    name: str
    size_bytes: int
    write: Callable[[BinaryIO, Callable[[], None]], None]
    check: Callable[[int], None]


class ShardCache:
    """The cache below `folder`, kept at `limit_bytes`, or at what the disk holds if that is None.

    `patience_seconds` is how long another process is waited for that does not move. `counts` adds up `downloads`,
    `fetched_bytes`, `evictions` and `healed` (cached files that had gone bad) in this process.
    """

    def __init__(self, folder: Path, limit_bytes: float | None, patience_seconds: float) -> None:
        self.folder = folder / FOLDER_NAME
        self.counts = zero_counts()
        self._room = self.folder / _LOCKS / "room.lock"
        self._limit_bytes = limit_bytes
        self._patience_seconds = patience_seconds

    def touch(self, fd: int) -> None:
        """Note that an open file was used. Its time of change stays: that tells whether its content was changed."""
        stat = os.fstat(fd)
        now = time.time_ns()
        if now - stat.st_atime_ns > _TOUCH_NS:
            with suppress(OSError):  # one who may only read the cache does not keep its order
                os.utime(fd, ns=(now, stat.st_mtime_ns))

    def fetch(self, wanted: Wanted, on_progress: Callable[[], None] = lambda: None) -> int:
        """Descriptor of the checked file, fetched unless another process just did so; the caller closes it.

        A cached file that is wrong is replaced. Raises DataError where it cannot be had, also if the process that was
        waited for could not have it; nothing of it is left behind. `on_progress` is called while this fetch, or the one
        that is waited for, moves on.
        """
        path = self.folder / wanted.name
        temporary = _temporary(path)
        begin = time.monotonic()
        try:
            with locked(self._lock_of(path), self._patience_seconds, lambda: _state(temporary, on_progress)) as lock:
                _raise_failure_after(lock, begin)
                found = self._found(path, wanted)
                return self._fetched(path, wanted, lock, on_progress) if found is None else found
        except OSError as error:
            raise _cannot_keep(path, error) from error

    def _lock_of(self, path: Path) -> Path:
        return self.folder / _LOCKS / ("-".join(path.relative_to(self.folder).parts) + ".lock")

    def _found(self, path: Path, wanted: Wanted) -> int | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            wanted.check(fd)
        except DataError:
            os.close(fd)
            path.unlink(missing_ok=True)
            self.counts["healed"] += 1
            return None
        self.counts["hits"] += 1
        return fd

    def _fetched(self, path: Path, wanted: Wanted, lock: int, on_progress: Callable[[], None]) -> int:
        temporary = _temporary(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # of an owner that died
        for attempt in range(_ATTEMPTS):
            try:
                with self._reserved(temporary, wanted.size_bytes) as file:
                    wanted.write(file, partial(_moved, file.fileno(), on_progress))
                    file.flush()
                    wanted.check(file.fileno())
                    with locked(self._room, self._patience_seconds):  # one who counts sees the one name or the other
                        os.replace(temporary, path)
                    fd = os.dup(file.fileno())
                self.counts["downloads"] += 1
                self.counts["fetched_bytes"] += wanted.size_bytes
                return fd
            except (DataError, OSError) as error:
                told = error if isinstance(error, DataError) else _cannot_keep(path, error)
                if attempt == _ATTEMPTS - 1 or not isinstance(error, DamagedError):
                    _note_failure(lock, told)
                    raise told from error
            finally:
                temporary.unlink(missing_ok=True)
        raise AssertionError("the last attempt returns or raises")

    def _reserved(self, temporary: Path, size_bytes: int) -> BinaryIO:
        """The temporary file, open, with its room on the disk taken."""
        last_move, state = time.monotonic(), None
        while True:
            with locked(self._room, self._patience_seconds):
                before, state = state, self._make_room(size_bytes)
                if state is None:
                    return self._allocated(temporary, size_bytes)
            now = time.monotonic()
            last_move = now if state != before else last_move
            if now - last_move > self._patience_seconds:
                raise DataError(
                    f"{self.folder}: no room for {size_bytes} bytes while other processes fetch as well. "
                    "Remedy: raise data.cache_gb to a few shards for each process of this machine"
                )
            time.sleep(_POLL_SECONDS)

    def _make_room(self, size_bytes: int) -> object:
        """None once there is room for so many bytes, else what the files that are being fetched take."""
        free, limit = self._free_bytes(), self._limit_bytes
        if limit is None and free >= size_bytes:
            return None  # without a look at what may be a hundred thousand files
        named, under_way = self._scan()
        used = sum(size for _, size, _ in named) + under_way
        room = free if limit is None else min(free, limit - used)
        if room + sum(size for _, size, _ in named) < size_bytes:
            named = []  # none would be enough
        for _, size, path in sorted(named):
            if room >= size_bytes:
                break
            Path(path).unlink(missing_ok=True)
            self.counts["evictions"] += 1
            room += size
        if room >= size_bytes:
            return None
        if under_way:
            return under_way
        if limit is not None and limit < size_bytes:
            raise DataError(
                f"data.cache_gb={limit / 1e9:g}: a shard of {size_bytes} bytes does not fit. Remedy: raise it to a "
                "few shards for each process of this machine"
            )
        raise DataError(
            f"{self.folder}: the disk is full: {max(0, int(free))} bytes may be used and a shard takes {size_bytes}. "
            "Remedy: free space, or give data.cache a folder on another disk"
        )

    def _allocated(self, temporary: Path, size_bytes: int) -> BinaryIO:
        while True:
            file = temporary.open("w+b")
            try:
                os.posix_fallocate(file.fileno(), 0, max(1, size_bytes))
                return file
            except OSError as error:
                file.close()
                oldest = min(self._scan()[0], default=None)
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or oldest is None:
                    raise
                Path(oldest[2]).unlink(missing_ok=True)
                self.counts["evictions"] += 1

    def _free_bytes(self) -> float:
        disk = os.statvfs(self.folder)
        spare = 0.0
        if self._limit_bytes is None:
            spare = min(_FREE_MOST_BYTES, _FREE_SHARE * disk.f_blocks * disk.f_frsize)
        return disk.f_bavail * disk.f_frsize - spare

    def _scan(self) -> tuple[list[tuple[int, int, str]], int]:
        """Last use, bytes and path of each file that has its name, and the bytes of those being fetched."""
        named, under_way = [], 0
        for entry in _files(str(self.folder)):
            with suppress(FileNotFoundError):  # a fetch under way has just ended
                stat = entry.stat()
                if not entry.name.startswith(TEMPORARY_PREFIX):
                    named.append((stat.st_atime_ns, stat.st_size, entry.path))
                elif self._owner_died(Path(entry.path)):
                    os.unlink(entry.path)
                else:
                    under_way += stat.st_size
        return named, under_way

    def _owner_died(self, temporary: Path) -> bool:
        path = temporary.parent / temporary.name.removeprefix(TEMPORARY_PREFIX)
        lock = os.open(self._lock_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            return try_lock(lock)
        finally:
            os.close(lock)


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    """Files below a folder, without locks; with no object made that is not needed, as each fetch may look at all."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                yield entry
            elif entry.name != _LOCKS:
                yield from _files(entry.path)


def _temporary(path: Path) -> Path:
    return path.parent / f"{TEMPORARY_PREFIX}{path.name}"


def _moved(fd: int, on_progress: Callable[[], None]) -> None:
    os.utime(fd)  # for those who wait, also while attempts fail
    on_progress()


def _state(temporary: Path, on_progress: Callable[[], None]) -> object:
    """What changes while the owner of a fetch moves."""
    try:
        state = temporary.stat().st_mtime_ns
    except FileNotFoundError:
        return None
    if time.time_ns() - state < _TOUCH_NS:
        on_progress()
    return state


@dataclass(frozen=True)
class _Note:
    time: float = 0.0
    message: str = ""
    unreachable: bool = False


def _note_failure(lock: int, error: DataError) -> None:
    with suppress(OSError):  # on a full disk; then the next one finds the cause by itself
        os.ftruncate(lock, 0)
        note = {"time": time.monotonic(), "message": str(error), "unreachable": isinstance(error, StoreUnreachable)}
        os.pwrite(lock, json.dumps(note).encode(), 0)


def _raise_failure_after(lock: int, begin: float) -> None:
    """Raise what the owner noted that was waited for since `begin`: its failure is not to be waited for once more."""
    try:
        note = parse_json(os.pread(lock, 1 << 20, 0) or b"{}", _Note)
    except Refused:
        return
    if begin < note.time <= time.monotonic():
        raise (StoreUnreachable if note.unreachable else DataError)(note.message)


def _cannot_keep(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: the shard cannot be kept in the cache ({error.strerror}). Remedy: free space or rights there, or "
        "give data.cache a folder on another disk"
    )
