"""The manifest of a dataset, one JSON line a sample: read in blocks of whole lines, hashed as it goes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megavideo.data.dataset.manifest_rows import ManifestPart, ManifestRows
from megavideo.data.storage.open import opened
from megavideo.data.storage.protocol import Storage

_BLOCK_BYTES = 2 << 20  # some milliseconds of work
_PIECE_BYTES = 1 << 17  # a cache holds it
_LINE_END = ord("\n")


@dataclass(frozen=True)
class Block:
    """Lines of a manifest: the sample of the first one and how many there are, and which bytes of the file they are."""

    first: int
    num_rows: int
    offset: int
    num_bytes: int


class Blocks:
    """All lines of a manifest in order, some thousands at a time, each block with its bytes; read and hashed once.

    The bytes are those of a buffer that the next block takes.
    """

    def __init__(self, manifest: Manifest, file: BinaryIO) -> None:
        self._manifest, self._file = manifest, file
        self._digest, self._num_rows = hashlib.sha256(), 0

    def __iter__(self) -> Iterator[tuple[Block, memoryview]]:
        offset = 0
        for lines in _whole_lines(self._file):
            self._digest.update(lines)
            num_rows = _num_lines(lines)
            yield Block(self._num_rows, num_rows, offset, len(lines)), lines
            self._num_rows, offset = self._num_rows + num_rows, offset + len(lines)

    def check(self) -> None:
        """Raise DataError where there were too few lines or others than the dataset tells of; to be called at the end.

        What is made of the lines is not to be used before.
        """
        rows = self._manifest.rows
        if self._digest.hexdigest() != self._manifest.checksum:
            raise rows.damaged("its checksum is not the one that the dataset tells")
        if self._num_rows != rows.num_samples:
            raise rows.disordered(self._num_rows)


@dataclass(frozen=True)
class Manifest:
    """A manifest and what its dataset says of it: its SHA-256 and its rows."""

    rows: ManifestRows
    storage: Storage
    checksum: str

    def opened(
        self, on_progress: Callable[[], None] = lambda: None, folder: Path | None = None
    ) -> AbstractContextManager[BinaryIO]:
        """The file, to be read; of a store a copy in `folder`, or where such files go. DataError where it cannot be."""
        return opened(self.storage, self.rows.name, folder, on_progress)

    def parts(self) -> Iterator[ManifestPart]:
        """All rows in order, some thousands at a time.

        Raises DataError where the file cannot be read, is damaged, or has other rows than sample 0 to the last in
        order. Its checksum is known only at the end: what is made of the parts is not to be used before.
        """
        with self.opened() as file:
            blocks = Blocks(self, file)
            for block, lines in blocks:
                yield self.rows.parse(block.first, bytes(lines))
            blocks.check()


def _whole_lines(file: BinaryIO) -> Iterator[memoryview]:
    """The file in pieces that end with a line; the last may lack its end. One buffer serves for all of them."""
    buffer, filled = bytearray(_BLOCK_BYTES), 0
    while num_bytes := file.readinto(memoryview(buffer)[filled:]):  # type: ignore[attr-defined]
        filled += num_bytes
        end = buffer.rfind(b"\n", 0, filled) + 1
        if end:
            yield memoryview(buffer)[:end]
            buffer[: filled - end] = buffer[end:filled]
            filled -= end
        elif filled == len(buffer):
            buffer = buffer + bytes(filled)  # for a longer line
    if filled:
        yield memoryview(buffer)[:filled]


def _num_lines(lines: memoryview) -> int:
    values = np.frombuffer(lines, np.uint8)
    pieces = (values[begin : begin + _PIECE_BYTES] for begin in range(0, len(values), _PIECE_BYTES))
    return sum(int(np.count_nonzero(piece == _LINE_END)) for piece in pieces) + int(values[-1] != _LINE_END)
