"""The bounded cache by itself: what goes first, what makes room, what is never removed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from megavideo.data.stream.cache import FOLDER_NAME, DamagedError, ShardCache, Wanted
from megavideo.errors import DataError

SIZE = 100


def wanted(name: str, size: int = SIZE, content: bytes | None = None) -> Wanted:
    def write(file: BinaryIO, on_progress: Callable[[], None]) -> None:
        file.write(content or b"x" * size)

    def check(fd: int) -> None:
        if os.pread(fd, size, 0) != b"x" * size:
            raise DamagedError("not what it should be")

    return Wanted(name, size, write, check)


def fetch(cache: ShardCache, what: Wanted) -> None:
    os.close(cache.fetch(what))


def names(folder: Path) -> set[str]:
    files = (folder / FOLDER_NAME).rglob("*")
    return {path.name for path in files if path.is_file() and path.suffix != ".lock"}


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 3 * SIZE, 1.0)
    for age, name in enumerate(("d/shards/a", "d/shards/b", "e/c")):
        fetch(cache, wanted(name))
        path = tmp_path / FOLDER_NAME / name
        os.utime(path, ns=(time.time_ns() - (10 - age) * 10**9, path.stat().st_mtime_ns))
    kept = os.open(tmp_path / FOLDER_NAME / "d/shards/b", os.O_RDONLY)
    before = os.fstat(kept).st_mtime_ns
    fd = os.open(tmp_path / FOLDER_NAME / "d/shards/a", os.O_RDONLY)
    cache.touch(fd)
    fetch(cache, wanted("e/d"))
    assert names(tmp_path) == {"a", "c", "d"} and cache.counts["evictions"] == 1
    assert os.pread(kept, SIZE, 0) == b"x" * SIZE and os.fstat(kept).st_mtime_ns == before  # its reader loses nothing
    os.close(kept)
    os.close(fd)


def test_only_its_own_folder_is_kept_in_order(tmp_path: Path) -> None:
    (tmp_path / "of-the-user").write_bytes(bytes(10_000))
    cache = ShardCache(tmp_path, SIZE, 1.0)
    fetch(cache, wanted("d/a"))
    fetch(cache, wanted("d/b"))
    assert names(tmp_path) == {"b"} and (tmp_path / "of-the-user").stat().st_size == 10_000


def test_a_file_beyond_the_bound_is_refused(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, SIZE, 1.0)
    fetch(cache, wanted("d/a"))
    with pytest.raises(DataError, match=r"data\.cache_gb=1e-07: a shard of 101 bytes does not fit"):
        fetch(cache, wanted("d/b", SIZE + 1))
    assert names(tmp_path) == {"a"}


def test_files_are_not_looked_at_while_the_disk_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(folder: str) -> None:
        raise AssertionError("a hundred thousand files, at each fetch")

    monkeypatch.setattr("megavideo.data.stream.cache._files", look)
    fetch(ShardCache(tmp_path, None, 1.0), wanted("d/a"))
    assert names(tmp_path) == {"a"}


def test_a_fetch_whose_owner_died_is_cleared_away(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 2 * SIZE, 0.2)
    fetch(cache, wanted("d/a"))
    (tmp_path / FOLDER_NAME / "d" / ".writing-b").write_bytes(bytes(SIZE))
    fetch(cache, wanted("d/c"))
    assert names(tmp_path) == {"a", "c"}


def test_a_fetch_of_another_is_waited_for_in_vain_only_so_long(tmp_path: Path) -> None:
    def other(file: BinaryIO, on_progress: Callable[[], None]) -> None:
        with pytest.raises(DataError, match=r"no room for 100 bytes while other processes fetch"):
            fetch(ShardCache(tmp_path, SIZE, 0.2), wanted("d/b"))
        with pytest.raises(DataError, match=r"has held this lock"):
            fetch(ShardCache(tmp_path, SIZE, 0.2), wanted("d/a"))
        file.write(b"x" * SIZE)

    what = wanted("d/a")
    fetch(ShardCache(tmp_path, SIZE, 1.0), Wanted(what.name, SIZE, other, what.check))
    assert names(tmp_path) == {"a"}


def test_wrong_content_never_gets_a_name(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, None, 1.0)
    with pytest.raises(DataError, match="not what it should be"):
        fetch(cache, wanted("d/a", content=b"y" * SIZE))
    assert names(tmp_path) == set()
    fetch(cache, wanted("d/a"))
    (tmp_path / FOLDER_NAME / "d" / "a").write_bytes(b"z" * SIZE)
    fetch(cache, wanted("d/a"))
    assert cache.counts["healed"] == 1 and cache.counts["downloads"] == 2
