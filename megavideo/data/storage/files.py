"""Files that are seen whole or not at all, and names that stay inside a storage."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from megavideo.errors import DataError

TEMPORARY_PREFIX = ".writing-"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; flush and rename it to `path` if the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses in the block into a DataError that names `path`."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}). Remedy: check the path, its rights and free space"
        ) from error


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically; OSError where the disk refuses."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def checked_name(name: str) -> str:
    """`name` as a normal relative path; DataError where it would leave the storage."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise DataError(f"{name!r}: a name in a storage is relative and stays inside it. Remedy: correct the name")
    return str(path)
