"""The shards of a dataset as open files: each is checked against its hash before a process trusts it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import xxhash

from megavideo.border.files import open_descriptor
from megavideo.border.names import beneath
from megavideo.border.refused import Refused
from megavideo.data.dataset.index import ShardEntry, ShardFile
from megavideo.data.storage.files import checked_name
from megavideo.data.storage.local import LocalStorage
from megavideo.data.storage.protocol import Storage
from megavideo.data.stream.cache import DamagedError, ShardCache, Wanted
from megavideo.data.stream.counts import zero_counts
from megavideo.errors import DataError

HASH = "xxh64"
_CHUNK_BYTES = 1 << 20
_ENCODE_AGAIN = "restore it from a copy, or encode again with overwrite=true"

# Device, inode, bytes and time of change of a file: while they stay, so does the content that was checked.
Signature = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Shard:
    """What is kept of a shard's entry in the index: there may be millions, in every process."""

    name: str
    size_bytes: int
    digest: str


class ShardFiles:
    """Opens the shards of `storage` by number, through `cache` where it is a store, in place where it is a folder.

    `shards` are the entries of `index.json`; `cache_prefix` is the folder of this dataset in the cache. `counts` adds
    up `hits` (shards found and checked without a fetch) and what the cache counts.
    """

    def __init__(
        self, uri: str, storage: Storage, shards: Sequence[ShardEntry], cache: ShardCache | None, cache_prefix: str
    ) -> None:
        self._uri = uri
        self._storage = storage
        self._shards = [_shard(uri, shard.raw_data) for shard in shards]
        self._cache = cache
        self._prefix = cache_prefix
        if cache is not None:
            folder = cache.folder / cache_prefix
        else:
            assert isinstance(storage, LocalStorage)
            folder = storage.folder
        self._folder = str(folder)
        self._trusted: dict[int, Signature] = {}
        self._counts = zero_counts()

    @property
    def counts(self) -> Counter[str]:
        """Counts of this process so far; `retries` are further attempts at reaching the store."""
        total = self._counts + Counter(retries=self._storage.retries)
        return total + self._cache.counts if self._cache else total

    def open_trusted(self, number: int) -> int | None:
        """Descriptor of a shard that this process has checked, or was told of, and that has not changed since."""
        if number not in self._trusted:
            return None
        try:
            fd = os.open(self._path(number), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        if _signature(fd) != self._trusted[number]:
            os.close(fd)
            return None
        if self._cache is not None:
            self._cache.touch(fd)
        return fd

    def open(self, number: int, on_progress: Callable[[], None] = lambda: None) -> int:
        """Descriptor of the shard, fetched and checked if need be; the caller closes it. Raises DataError.

        `on_progress` is called while a fetch moves on.
        """
        fd = self.open_trusted(number)
        if fd is not None:
            return fd
        if self._cache is None:
            fd = self._open_in_folder(number)
        else:
            fd = self._cache.fetch(self._wanted(number), on_progress)
        self._trusted[number] = _signature(fd)
        return fd

    def check(self, number: int, on_progress: Callable[[], None]) -> Signature:
        """Fetch and check the shard ahead of its use; the answer is for `trust` in another process."""
        os.close(self.open(number, on_progress))
        return self._trusted[number]

    def trust(self, number: int, signature: Signature) -> None:
        """Take another process's word that it checked the file of this signature."""
        self._trusted[number] = signature

    def was_trusted(self, number: int) -> bool:
        """True where this process has had the shard before, whether or not it is still there."""
        return number in self._trusted

    def _path(self, number: int) -> str:
        return f"{self._folder}/{self._shards[number].name}"

    def _open_in_folder(self, number: int) -> int:
        path = self._path(number)
        try:
            fd = open_descriptor(beneath(Path(self._folder), self._shards[number].name))
        except OSError as error:
            raise DataError(f"{path}: shard cannot be read ({error.strerror}). Remedy: {_ENCODE_AGAIN}") from error
        except Refused as error:
            raise DataError(f"{path}: shard is not read: {error}. Remedy: {_ENCODE_AGAIN}") from error
        try:
            self._verify(fd, number)
        except BaseException:
            os.close(fd)
            raise
        self._counts["hits"] += 1
        return fd

    def _wanted(self, number: int) -> Wanted:
        shard = self._shards[number]

        def write(file: BinaryIO, on_progress: Callable[[], None]) -> None:
            self._storage.copy_to(shard.name, file, on_progress)

        return Wanted(f"{self._prefix}/{shard.name}", shard.size_bytes, write, lambda fd: self._verify(fd, number))

    def _verify(self, fd: int, number: int) -> None:
        shard = self._shards[number]
        name = f"{self._uri}/{shard.name}"
        try:
            actual_size = os.fstat(fd).st_size
            if actual_size != shard.size_bytes:
                raise DamagedError(
                    f"{name}: shard is damaged: it has {actual_size} bytes, the index says {shard.size_bytes}. "
                    f"Remedy: {_ENCODE_AGAIN}"
                )
            actual = _hash(fd)
        except OSError as error:
            raise DataError(f"{name}: shard cannot be read ({error.strerror}). Remedy: {_ENCODE_AGAIN}") from error
        if actual != shard.digest:
            raise DamagedError(
                f"{name}: shard is damaged: its {HASH} is {actual}, the index says {shard.digest}. "
                f"Remedy: {_ENCODE_AGAIN}"
            )


def _shard(uri: str, file: ShardFile) -> _Shard:
    digest = file.hashes.get(HASH)
    if digest is None:
        raise DataError(f"{uri}: {file.basename} has no {HASH} in the index. Remedy: {_ENCODE_AGAIN}")
    return _Shard(checked_name(file.basename), file.bytes, digest)


def _hash(fd: int) -> str:
    digest, buffer, offset = xxhash.xxh64(), memoryview(bytearray(_CHUNK_BYTES)), 0
    while count := os.preadv(fd, [buffer], offset):
        digest.update(buffer[:count])
        offset += count
    return digest.hexdigest()


def _signature(fd: int) -> Signature:
    stat = os.fstat(fd)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
