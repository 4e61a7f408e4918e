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

from megavideo.data.storage.files import checked_name, writing
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

    def read_bytes(self, name: str) -> bytes:
        """The content of the file; DataError where it cannot be read."""
        with _reading(self._path(name)):
            return self._path(name).read_bytes()

    def write_bytes(self, name: str, data: bytes, on_progress: Callable[[], None] | None = None) -> None:
        """Write the file atomically, making its folder; DataError where the disk refuses."""
        with writing(self._path(name)):
            write_file(self._path(name), data)
        if on_progress is not None:
            on_progress()

    def exists(self, name: str) -> bool:
        """True where the file exists; DataError where the folder may not be looked into."""
        with _reading(self._path(name)):
            return self._path(name).is_file()

    def list(self, prefix: str = "") -> list[str]:
        """Files under the folder, without those still being written; DataError where a part of it cannot be listed."""
        names: list[str] = []
        with _reading(self.folder):
            for folder, _, files in os.walk(self.folder, onerror=_raise_unless_gone):
                whole = (name for name in files if not name.startswith(TEMPORARY_PREFIX))
                there = (path for name in whole if (path := Path(folder, name)).is_file())  # no link that leads nowhere
                names += [path.relative_to(self.folder).as_posix() for path in there]
        return sorted(name for name in names if name.startswith(prefix))

    def copy_to(self, name: str, file: BinaryIO, on_progress: Callable[[], None] = lambda: None) -> None:
        """Write the content of the file into `file`."""
        file.seek(0)
        with self.open(name) as source:
            shutil.copyfileobj(source, file)
        file.truncate()

    def open(self, name: str) -> BinaryIO:
        """The file, opened for reading; DataError where it cannot be."""
        with _reading(self._path(name)):
            return self._path(name).open("rb")

    def download(self, name: str, path: Path) -> None:
        """Copy the file to `path`."""
        with self.open(name) as source, writing(path), replacing(path) as temporary, temporary.open("wb") as file:
            shutil.copyfileobj(source, file)

    def upload(self, path: Path, name: str, on_progress: Callable[[], None] | None = None) -> None:
        """Copy `path` into the folder."""
        place = self._path(name)
        with writing(place), replacing(place) as temporary, path.open("rb") as source, temporary.open("wb") as file:
            while chunk := source.read(_CHUNK_BYTES):
                file.write(chunk)
                if on_progress is not None:
                    on_progress()

    def delete(self, name: str) -> None:
        """Remove the file if it is there; DataError where the disk refuses."""
        with writing(self._path(name)):
            self._path(name).unlink(missing_ok=True)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Remedy: check the path and its rights") from error


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # no folder holds no files, and one may be removed meanwhile
        raise error
