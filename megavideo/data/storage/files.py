"""What a disk refuses, as an error of the path; and names that stay inside a storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

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
    """`name` as a normal relative path; DataError where it would leave the storage."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise DataError(f"{name!r}: a name in a storage is relative and stays inside it. Remedy: correct the name")
    return str(path)
