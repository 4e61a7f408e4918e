"""Which content a file has, by its size and a few blocks of it: three short reads, however large the file is."""

from __future__ import annotations

import os
from pathlib import Path

import xxhash

from megavideo.border.files import open_descriptor

_BLOCK_BYTES = 1 << 16


def content_mark(path: Path) -> str:
    """Size of a file and XXH3 of its first, middle and last 64 KiB, of a shorter one all.

    The same on every machine. Files of one size that differ between the blocks only have one mark: what changed there
    is known by its time of change. Raises OSError where it is barred, and Refused where it is no regular file.
    """
    digest = xxhash.xxh3_64()
    descriptor = open_descriptor(path)
    try:
        size = os.fstat(descriptor).st_size
        if size <= 3 * _BLOCK_BYTES:
            digest.update(os.pread(descriptor, 3 * _BLOCK_BYTES, 0))
        else:
            for place in (0, (size - _BLOCK_BYTES) // 2, size - _BLOCK_BYTES):
                digest.update(os.pread(descriptor, _BLOCK_BYTES, place))
    finally:
        os.close(descriptor)
    return f"{size:x}-{digest.hexdigest()}"
