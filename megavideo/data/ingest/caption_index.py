"""The rows of a caption file, found by file or clip: the file stays on the disk, and memory holds 24 bytes a row.

It means what `read_caption_table` means, which holds all rows in memory.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from megavideo.border.files import open_file
from megavideo.data.clips.captions import CaptionNote, CaptionRow, WeightedCaption, caption_rows, parse_caption_row

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class _Places:
    """Where rows are: [N] hashes of what they are found by, sorted, then bytes from the beginning, and lines."""

    keys: Hashes
    offsets: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64]

    @staticmethod
    def sorted(keys: Hashes, offsets: npt.NDArray[np.int64], lines: npt.NDArray[np.int64]) -> _Places:
        order = np.argsort(keys, kind="stable")  # of equal ones the first line first
        return _Places(keys[order], offsets[order], lines[order])

    def take(self, chosen: npt.NDArray[np.bool_]) -> _Places:
        return _Places(self.keys[chosen], self.offsets[chosen], self.lines[chosen])

    def of(self, key: int) -> range:
        """Numbers of the rows of a key."""
        begin, end = (int(np.searchsorted(self.keys, np.uint64(key), side)) for side in ("left", "right"))
        return range(begin, end)

    @property
    def repeated(self) -> npt.NDArray[np.bool_]:
        """True for every row whose key a row before it has."""
        return np.concatenate([np.zeros(min(1, len(self.keys)), np.bool_), self.keys[1:] == self.keys[:-1]])


class _Columns:
    """Places of rows while they are read."""

    def __init__(self) -> None:
        self.keys, self._offsets, self._lines = array("Q"), array("q"), array("q")

    def add(self, key: int, row: CaptionRow) -> None:
        self.keys.append(key)
        self._offsets.append(row.offset)
        self._lines.append(row.line)

    def places(self) -> _Places:
        return _Places.sorted(
            np.array(self.keys, np.uint64), np.array(self._offsets, np.int64), np.array(self._lines, np.int64)
        )


class CaptionIndex:
    """The captions of files and of single clips in a caption file, whose rows are read as they are asked for.

    `notes` are of rows that are not used, `damaged` of lines that are no rows. Raises DataError where the file cannot
    be read.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self._path, self._root = path, root
        self.damaged: list[CaptionNote] = []
        files, clips, file_of_clip = self._read()
        self._file = open_file(path)
        self.notes = sorted([*self.damaged, *self._repeated(files), *self._repeated(clips)], key=lambda note: note.line)
        self._clips = clips.take(~clips.repeated)
        self._files = self._with_lone_clips(files.take(~files.repeated), self._clips, file_of_clip[~clips.repeated])
        self._found = np.zeros(len(self._clips.keys), np.bool_)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def has_rows(self) -> bool:
        """True where any line is a row."""
        return len(self._files.keys) > 0 or self.has_clips

    @property
    def has_clips(self) -> bool:
        """True where a row speaks of a single clip."""
        return len(self._clips.keys) > 0

    def of_file(self, path: Path) -> tuple[WeightedCaption, ...] | None:
        """The captions of a file; None where it has none."""
        rows = self._rows(self._files, _hash(str(path)))
        return next((row.captions for _, row in rows if row.path == path), None)

    def of_clip(self, clip_id: str) -> tuple[WeightedCaption, ...] | None:
        """The captions of a clip; None where it has none of its own."""
        for number, row in self._rows(self._clips, _hash(clip_id)):
            if row.clip_id == clip_id:
                self._found[number] = True
                return row.captions
        return None

    def others(self, known: Sequence[str]) -> Iterator[CaptionRow]:
        """The rows of files that are none of `known`, which are names below the root."""
        hashes = np.fromiter((_hash(f"{self._root}/{name}") for name in known), np.uint64, len(known))
        for number in np.flatnonzero(~np.isin(self._files.keys, hashes)).tolist():
            yield self._row(self._files, number)

    def unknown_files(self, known: Sequence[str]) -> Iterator[CaptionNote]:
        """Notes for files that are none of `known` and do not exist."""
        for row in self.others(known):
            if not os.path.exists(row.path):
                yield CaptionNote(str(row.path), row.line, "no such file")

    def unknown_clips(self) -> Iterator[CaptionNote]:
        """Notes for clips that were not asked for."""
        for number in np.flatnonzero(~self._found).tolist():
            row = self._row(self._clips, number)
            yield CaptionNote(row.file, row.line, f"no clip has the clip_id {row.clip_id}")

    def _read(self) -> tuple[_Places, _Places, Hashes]:
        """Places of the rows of files, of those of clips, and hashes of the latter's files."""
        files, clips, paths = _Columns(), _Columns(), array("Q")
        for row in caption_rows(self._path, self._root):
            if isinstance(row, CaptionNote):
                self.damaged.append(row)
                continue
            path = _hash(str(row.path))
            if row.clip_id is None:
                files.add(path, row)
            else:
                clips.add(_hash(row.clip_id), row)
                paths.append(path)
        order = np.argsort(np.array(clips.keys, np.uint64), kind="stable")
        return files.places(), clips.places(), np.array(paths, np.uint64)[order]

    def _with_lone_clips(self, files: _Places, clips: _Places, file_of_clip: Hashes) -> _Places:
        """The rows of files, and those of clips that are the only ones of a file without a row of its own."""
        apart = ~np.isin(file_of_clip, files.keys)
        others = _Places.sorted(file_of_clip[apart], clips.offsets[apart], clips.lines[apart])
        _, begins, counts = np.unique(others.keys, return_index=True, return_counts=True)
        for begin, count in zip(begins[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
            row = self._row(others, begin + int(others.lines[begin : begin + count].argmin()))
            reason = f"has captions of {count} clips of it, found by their clip_id, and none of the whole"
            self.notes.append(CaptionNote(row.file, row.line, reason))
        lone = np.isin(np.arange(len(others.keys)), begins[counts == 1])
        others = others.take(lone)
        return _Places.sorted(
            np.concatenate([files.keys, others.keys]),
            np.concatenate([files.offsets, others.offsets]),
            np.concatenate([files.lines, others.lines]),
        )

    def _repeated(self, places: _Places) -> Iterator[CaptionNote]:
        for number in np.flatnonzero(places.repeated).tolist():
            row = self._row(places, number)
            first = self._row(places, places.of(int(places.keys[number]))[0])
            same = "the same caption" if first.captions == row.captions else "another caption"
            reason = f"has {same} in line {first.line} already; the first is used"
            yield CaptionNote(row.file, row.line, reason)

    def _rows(self, places: _Places, key: int) -> Iterator[tuple[int, CaptionRow]]:
        return ((number, self._row(places, number)) for number in places.of(key))

    def _row(self, places: _Places, number: int) -> CaptionRow:
        offset = int(places.offsets[number])
        self._file.seek(offset)
        return parse_caption_row(self._path, self._root, int(places.lines[number]), offset, self._file.readline())


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))
