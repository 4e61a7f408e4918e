"""From a URI to the storage there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from megavideo.border.secrets import without_secrets
from megavideo.data.storage.files import checked_entry
from megavideo.data.storage.local import LocalStorage
from megavideo.data.storage.protocol import Storage
from megavideo.data.storage.retry import RetryPolicy
from megavideo.data.storage.s3 import S3Storage
from megavideo.errors import DataError


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
        raise DataError(
            f"{without_secrets(uri)}: storage '{scheme}' is not supported. Remedy: give a folder or s3://bucket/prefix"
        )
    return LocalStorage(Path(uri.removeprefix("file://")).expanduser())


def download_all(storage: Storage, prefix: str, folder: Path) -> None:
    """Copy every name under `prefix` into `folder`, leaving `prefix` off the names.

    Raises DataError, before anything is written, where one of them would come to lie outside.
    """
    places = {name: checked_entry(folder, name.removeprefix(prefix)) for name in storage.list(prefix)}
    for name, place in places.items():
        storage.download(name, place)


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
