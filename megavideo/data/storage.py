"""Where datasets live: a local folder or an object store, behind one small protocol.

Names are relative POSIX paths ("encoders/pca.json"). A local write is atomic: it goes to a temporary file in the same
folder, is flushed to disk and renamed, so that a reader sees the old file or the new one and never a part.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from megavideo.data.files import TEMPORARY_PREFIX, checked_name, replacing, write_file, writing
from megavideo.data.retry import RetryPolicy
from megavideo.data.s3 import S3Storage
from megavideo.errors import DataError


class Storage(Protocol):
    """A flat set of named byte strings under one URI."""

    uri: str
    retry: RetryPolicy
    retries: int  # further attempts that were needed so far, in this process

    def read_bytes(self, name: str) -> bytes:
        """The whole content of `name`; DataError where it is missing or unreadable."""
        ...

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write or replace `name` as a whole."""
        ...

    def exists(self, name: str) -> bool:
        """True where `name` can be read; DataError where the store itself cannot be reached."""
        ...

    def list(self, prefix: str = "") -> list[str]:
        """Names that begin with `prefix`, sorted."""
        ...

    def copy_to(self, name: str, file: BinaryIO, on_progress: Callable[[], None] = lambda: None) -> None:
        """Write the content of `name`, which is known to be there, into `file` from its beginning.

        `on_progress` is called now and then.
        """
        ...

    def download(self, name: str, path: Path) -> None:
        """Copy `name` to the local file `path`, atomically."""
        ...

    def upload(self, path: Path, name: str) -> None:
        """Copy the local file `path` to `name`."""
        ...

    def delete(self, name: str) -> None:
        """Remove `name`; a missing one is no error."""
        ...


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

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write the file atomically, making its folder; DataError where the disk refuses."""
        with writing(self._path(name)):
            write_file(self._path(name), data)

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

    def upload(self, path: Path, name: str) -> None:
        """Copy `path` into the folder."""
        with writing(self._path(name)), replacing(self._path(name)) as temporary:
            shutil.copyfile(path, temporary)

    def delete(self, name: str) -> None:
        """Remove the file if it is there; DataError where the disk refuses."""
        with writing(self._path(name)):
            self._path(name).unlink(missing_ok=True)


def is_object_store(uri: str) -> bool:
    """True for a URI that names an object store, not a folder."""
    return "://" in uri and not uri.startswith("file://")


def open_storage(uri: str, retry: RetryPolicy | None = None) -> Storage:
    """The storage at `uri`: a folder, `file:///folder` or `s3://bucket/prefix`. Opens no connection yet.

    `retry` is how long a store is waited for.
    """
    if uri.startswith("s3://"):
        return S3Storage(uri, retry)
    if is_object_store(uri):
        scheme = uri.split("://")[0]
        raise DataError(f"{uri}: storage '{scheme}' is not supported. Remedy: give a folder or s3://bucket/prefix")
    return LocalStorage(Path(uri.removeprefix("file://")).expanduser())


def download_all(storage: Storage, prefix: str, folder: Path) -> None:
    """Copy every name under `prefix` into `folder`, leaving `prefix` off the names."""
    for name in storage.list(prefix):
        storage.download(name, folder / name.removeprefix(prefix))


@contextmanager
def opened(
    storage: Storage, name: str, folder: Path | None, on_progress: Callable[[], None] = lambda: None
) -> Iterator[BinaryIO]:
    """`name` as a file to read, and not to be held in memory: in place, or of a store a copy that goes again.

    The copy lies in `folder`, or where the system has its temporary files.
    """
    if isinstance(storage, LocalStorage):
        with storage.open(name) as file:
            yield file
        return
    with tempfile.TemporaryFile(dir=folder) as copy:
        storage.copy_to(name, copy, on_progress)
        copy.seek(0)
        yield copy


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Remedy: check the path and its rights") from error


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # no folder holds no files, and one may be removed meanwhile
        raise error
