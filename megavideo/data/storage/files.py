"""What a disk refuses, as an error of the path; and names that stay inside a storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megavideo.border.names import entry_beneath, inside_name
from megavideo.border.refused import Refused
from megavideo.errors import DataError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses in the block into a DataError that names `path`."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}). Remedy: check the path, its rights and free space"
        ) from error


def checked_name(name: str) -> str:
    """`name`, a relative path in its normal form; DataError for another, as one that would leave the storage."""
    try:
        return inside_name(name)
    except Refused as error:
        raise DataError(
            f"{name!r}: a name in a storage is relative and stays inside it. Remedy: correct the name, or use no data "
            "of those whom you do not trust"
        ) from error


def checked_entry(folder: Path, name: str) -> Path:
    """Where `name` is written or removed under `folder`; DataError where that is outside, by its parts or by links."""
    try:
        return entry_beneath(folder, checked_name(name))
    except Refused as error:
        raise DataError(f"{error}. Remedy: put the files themselves there, and no links") from error
