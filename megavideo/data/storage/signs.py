"""Where owners of an output leave their signs: a hidden folder in it, or objects under its prefix in a store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from megavideo.data.storage.files import writing
from megavideo.data.storage.local import LocalStorage
from megavideo.data.storage.protocol import Storage
from megavideo.errors import DataError
from megavideo.observe.owner import OWNER_FOLDER, read_sign
from megavideo.observe.whole_file import write_file

_SUFFIX = ".json"


class Signs(Protocol):
    """Small files by name. Each call raises DataError where the place refuses."""

    place: str

    def names(self) -> list[str]:
        """Those that are there, sorted."""
        ...

    def read(self, name: str) -> tuple[bytes, int] | None:
        """Content, and a number that changes with each sign of life; None where it is gone."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write or replace one as a whole."""
        ...

    def beat(self, name: str, data: bytes) -> bool:
        """Give a sign of life; False where the file is gone, and then it stays so."""
        ...

    def remove(self, name: str) -> None:
        """Remove one; a missing one is no error."""
        ...

    def leave(self) -> None:
        """Remove what only held signs, if it holds none any more."""
        ...


class FolderSigns:
    """Signs in a folder, of its owners or of those of a `file` in it. It is made if need be, as may be those above it.

    A sign of life changes the file's time and nothing else: it needs no room on the disk.
    """

    def __init__(self, folder: Path, file: str = "") -> None:
        self.place, self._folder = str(folder / file), folder
        self._signs = folder / (f"{OWNER_FOLDER}-{file}" if file else OWNER_FOLDER)
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]

    def names(self) -> list[str]:
        """Files of the hidden folder."""
        with writing(self._folder):
            try:
                return sorted(name for name in os.listdir(self._signs) if name.endswith(_SUFFIX) and name[0] != ".")
            except FileNotFoundError:
                return []

    def read(self, name: str) -> tuple[bytes, int] | None:
        """Content and time of change."""
        with writing(self._folder):
            return read_sign(self._signs / name)

    def write(self, name: str, data: bytes) -> None:
        """Atomic; the hidden folder may be removed by another process meanwhile."""
        with writing(self._folder):
            try:
                write_file(self._signs / name, data)
            except FileNotFoundError:
                write_file(self._signs / name, data)

    def beat(self, name: str, data: bytes) -> bool:
        """Set the file's time to the file server's own."""
        with writing(self._folder):
            try:
                os.utime(self._signs / name)
            except FileNotFoundError:
                return False
            return True

    def remove(self, name: str) -> None:
        """Unlink."""
        with writing(self._folder):
            (self._signs / name).unlink(missing_ok=True)

    def leave(self) -> None:
        """Remove the hidden folder, and those that were made for it, where they are empty."""
        for folder in (self._signs, *self._made):
            try:
                folder.rmdir()
            except OSError:
                return


class StoreSigns:
    """Signs as objects; a sign of life writes the object anew."""

    def __init__(self, storage: Storage) -> None:
        self.place = storage.uri
        self._storage = storage

    def names(self) -> list[str]:
        """Objects under the prefix."""
        prefix = f"{OWNER_FOLDER}/"
        return [name.removeprefix(prefix) for name in self._storage.list(prefix) if name.endswith(_SUFFIX)]

    def read(self, name: str) -> tuple[bytes, int] | None:
        """The content alone: it tells the number of signs of life."""
        try:
            return self._storage.read_bytes(_object(name)), 0
        except DataError:
            if self._storage.exists(_object(name)):
                raise
            return None

    def write(self, name: str, data: bytes) -> None:
        """Put the object."""
        self._storage.write_bytes(_object(name), data)

    def beat(self, name: str, data: bytes) -> bool:
        """Put the object if it is there."""
        if not self._storage.exists(_object(name)):
            return False
        self._storage.write_bytes(_object(name), data)
        return True

    def remove(self, name: str) -> None:
        """Delete the object."""
        self._storage.delete(_object(name))

    def leave(self) -> None:
        """A prefix is nothing by itself."""


def signs_at(place: Path | Storage, is_file: bool = False) -> Signs:
    """The signs of an output; with `is_file` of one file, beside which others may have other owners."""
    if isinstance(place, Path):
        return FolderSigns(place.parent, place.name) if is_file else FolderSigns(place)
    return FolderSigns(place.folder) if isinstance(place, LocalStorage) else StoreSigns(place)


def _object(name: str) -> str:
    return f"{OWNER_FOLDER}/{name}"
