"""A list of clips in the order of a hash of their ids, whatever its length: sorted bucket by bucket on the disk."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from megavideo.data.ingest import ClipFile

_BUCKET_BYTES = 128 << 20  # of the list; a bucket is sorted in memory
_MOST_BUCKETS = 256  # open files
_KEY_BYTES = 32

Row = tuple[bytes, str, bytes]  # order key, clip id, line


def order_key(clip_id: str) -> bytes:
    """What clips are ordered by."""
    return hashlib.sha256(clip_id.encode()).digest()


def sorted_rows(listed: ClipFile, folder: Path) -> Iterator[Row]:
    """The rows of a list by `order_key`; `folder` takes a copy of a list that is too large for the memory.

    Raises DataError where a row is damaged, or a clip is listed twice.
    """
    num_buckets = min(_MOST_BUCKETS, 1 + listed.num_bytes // _BUCKET_BYTES)
    last = b""
    for bucket in _buckets(listed, folder, num_buckets):
        for key, clip_id, line in sorted(bucket):
            if key == last:
                raise listed.twice(clip_id)
            last = key
            yield key, clip_id, line


def _buckets(listed: ClipFile, folder: Path, num_buckets: int) -> Iterator[list[Row]]:
    if num_buckets == 1:
        yield [(order_key(row.clip_id), row.clip_id, line) for line, row in listed.lines()]
        return
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(num_buckets)]
        for line, row in listed.lines():
            key = order_key(row.clip_id)
            file = files[int.from_bytes(key[:4]) * num_buckets >> 32]
            file.write(key + row.clip_id.encode() + b"\n" + line)
        for file in files:
            yield _read(file)
            file.truncate(0)


def _read(file: BinaryIO) -> list[Row]:
    file.seek(0)
    rows = []
    while key := file.read(_KEY_BYTES):
        clip_id = file.readline()[:-1].decode()
        rows.append((key, clip_id, file.readline()))
    return rows
