"""A local folder as storage.

A write is atomic: it goes to a temporary file in the same folder, is flushed to disk and renamed, so that a reader sees
the old file or the new one and never a part.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from megavideo.border.files import open_file
from megavideo.border.names import beneath
from megavideo.border.refused import Refused
from megavideo.data.storage.files import checked_entry, checked_name, writing
from megavideo.data.storage.retry import RetryPolicy
from megavideo.errors import DataError
from megavideo.observe.whole_file import TEMPORARY_PREFIX, replacing, write_file

_CHUNK_BYTES = 8 << 20


class LocalStorage:
    """A folder. It need not exist before the first write."""

    def __init__(self, folder: Path) -> None:
        self.retry = RetryPolicy(total_seconds=0.0)  # a folder is there or not
        self.retries = 0
        self.folder = folder
        self.uri = str(folder)

    def _path(self, name: str) -> Path:
        return self.folder / checked_name(name)

    def _entry(self, name: str) -> Path:
        return checked_entry(self.folder, name)

    def read_bytes(self, name: str) -> bytes:
        """The content of the file; DataError where it cannot be read."""
        with self.open(name) as file, _reading(self._path(name)):
            return file.read()

    def write_bytes(self, name: str, data: bytes, on_progress: Callable[[], None] | None = None) -> None:
        """Write the file atomically, making its folder; DataError where the disk refuses."""
        path = self._entry(name)
        with writing(path):
            write_file(path, data)
        if on_progress is not None:
            on_progress()

    def exists(self, name: str) -> bool:
        """True where the file exists; DataError where the folder may not be looked into."""
        with _reading(self._path(name)):
            return self._path(name).is_file()

    def list(self, prefix: str = "") -> list[str]:
        """Files under the folder, without those still being written; DataError where a part of it cannot be listed."""
        names: list[str] = []
        waiting = [""]  # no recursion: whoever made the folder chose its depth
        with _reading(self.folder):
            while waiting:
                below = waiting.pop()
                for entry in _entries(self.folder / below):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{below}{entry.name}/")
                    elif entry.is_file() and not entry.name.startswith(TEMPORARY_PREFIX):  # no link that leads nowhere
                        names.append(below + entry.name)
        return sorted(name for name in names if name.startswith(prefix))

    def copy_to(self, name: str, file: BinaryIO, on_progress: Callable[[], None] = lambda: None) -> None:
        """Write the content of the file into `file`."""
        file.seek(0)
        with self.open(name) as source:
            shutil.copyfileobj(source, file)
        file.truncate()

    def open(self, name: str) -> BinaryIO:
        """The file, opened for reading; DataError where it cannot be, is no regular one or lies outside by a link."""
        with _reading(self._path(name)):
            return open_file(beneath(self.folder, checked_name(name)))

    def download(self, name: str, path: Path) -> None:
        """Copy the file to `path`."""
        with self.open(name) as source, writing(path), replacing(path) as temporary, temporary.open("wb") as file:
            shutil.copyfileobj(source, file)

    def upload(self, path: Path, name: str, on_progress: Callable[[], None] | None = None) -> None:
        """Copy `path` into the folder."""
        place = self._entry(name)
        with writing(place), replacing(place) as temporary, path.open("rb") as source, temporary.open("wb") as file:
            while chunk := source.read(_CHUNK_BYTES):
                file.write(chunk)
                if on_progress is not None:
                    on_progress()

    def delete(self, name: str) -> None:
        """Remove the file if it is there; DataError where the disk refuses."""
        path = self._entry(name)
        with writing(path):
            path.unlink(missing_ok=True)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Remedy: check the path and its rights") from error
    except Refused as error:
        raise DataError(f"{path}: is not read: {error}. Remedy: put the file itself there") from error


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:  # no folder holds no files, and one may be removed meanwhile
        return []
