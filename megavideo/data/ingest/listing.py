"""What a store holds below its prefix: which objects are inputs, as names in order, and which hold captions.

A store may list millions of objects, a thousand at a time. They go to a database on the disk, and memory holds none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any, overload

from megavideo.border.names import inside_name
from megavideo.border.refused import Refused
from megavideo.data.clips.formats import is_media, is_other_media, why_not_read
from megavideo.data.ingest.report import SUFFIX, DroppedClip
from megavideo.data.storage.entry import Entry
from megavideo.data.storage.s3 import too_large

BAD_NAME, TOO_LARGE = "name", "too large"
_SIDECAR_SUFFIXES = (".txt", ".json")
_ROWS = 1000  # at a time

_TABLES = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
CREATE TABLE inputs (name TEXT PRIMARY KEY, version TEXT) WITHOUT ROWID;
CREATE TABLE refused (name TEXT PRIMARY KEY, kind TEXT, reason TEXT) WITHOUT ROWID;
CREATE TABLE sidecars (name TEXT PRIMARY KEY, version TEXT, num_bytes INTEGER) WITHOUT ROWID;
"""


class Listing(Sequence[str]):
    """The inputs of a store by name, sorted, without hidden ones; and why others are none.

    `path` is a file of this process, which is written anew.
    """

    def __init__(self, path: Path, entries: Iterable[Entry], most_bytes: int) -> None:
        path.unlink(missing_ok=True)
        self._database = sqlite3.connect(path)
        self._database.executescript(_TABLES)
        self._add(entries, most_bytes)
        self._count: int = self._one("SELECT count(*) FROM inputs")
        self.num_refused: int = self._one("SELECT count(*) FROM refused")

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        with closing(self._database.cursor()) as cursor:
            for (name,) in cursor.execute("SELECT name FROM inputs ORDER BY name"):
                yield name

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        """The name at a place, counted from the beginning; slices are not given."""
        if isinstance(place, slice):
            raise TypeError("a listing has no slices")
        name = self._one("SELECT name FROM inputs ORDER BY name LIMIT 1 OFFSET ?", place) if place >= 0 else None
        if name is None:
            raise IndexError(place)
        return str(name)

    def version(self, name: str) -> str | None:
        """The version of an input, None for what is none."""
        found = self._one("SELECT version FROM inputs WHERE name = ?", name)
        return None if found is None else str(found)

    def refused(self) -> Iterator[DroppedClip]:
        """What looks like an input and is none."""
        with closing(self._database.cursor()) as cursor:
            for row in cursor.execute("SELECT name, kind, reason FROM refused ORDER BY name"):
                yield DroppedClip(*row)

    def sidecar(self, name: str) -> Entry | None:
        """The object with the captions of an input, as `read_sidecar_captions` chooses it."""
        for beside in sidecar_names(name):
            query = "SELECT version, num_bytes FROM sidecars WHERE name = ?"
            with closing(self._database.execute(query, (beside,))) as cursor:
                row = cursor.fetchone()
            if row is not None:
                return Entry(beside, int(row[1]), str(row[0]))
        return None

    def _add(self, entries: Iterable[Entry], most_bytes: int) -> None:
        for block in _blocks(entries):
            inputs, refused, sidecars = [], [], []
            for entry in block:
                suffix = PurePosixPath(entry.name).suffix
                if suffix in _SIDECAR_SUFFIXES:
                    sidecars.append((entry.name, entry.version, entry.num_bytes))
                elif is_media(Path(entry.name)):
                    fault = _fault(entry, most_bytes)
                    if fault is not None:
                        refused.append((entry.name, *fault))
                    elif not _is_hidden(entry.name):
                        inputs.append((entry.name, entry.version))
                elif is_other_media(Path(entry.name)) and not _is_hidden(entry.name):
                    refused.append((entry.name, SUFFIX, why_not_read(Path(entry.name))))
            self._database.executemany("INSERT OR REPLACE INTO inputs VALUES (?, ?)", inputs)
            self._database.executemany("INSERT OR REPLACE INTO refused VALUES (?, ?, ?)", refused)
            self._database.executemany("INSERT OR REPLACE INTO sidecars VALUES (?, ?, ?)", sidecars)
        self._database.commit()

    def _one(self, query: str, *values: object) -> Any:
        with closing(self._database.execute(query, values)) as cursor:
            row = cursor.fetchone()
        return None if row is None else row[0]


def sidecar_names(name: str) -> tuple[str, ...]:
    """Where the captions of an input may lie beside it; the first that is there counts."""
    return tuple(PurePosixPath(name).with_suffix(suffix).as_posix() for suffix in _SIDECAR_SUFFIXES)


def _fault(entry: Entry, most_bytes: int) -> tuple[str, str] | None:
    try:
        inside_name(entry.name)
    except Refused as error:
        return BAD_NAME, f"{error}; such a key is not read"
    if entry.num_bytes > most_bytes and not _is_hidden(entry.name):
        return TOO_LARGE, too_large(entry.num_bytes, most_bytes)
    return None


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _blocks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    block: list[Entry] = []
    for entry in entries:
        block.append(entry)
        if len(block) == _ROWS:
            yield block
            block = []
    yield block
