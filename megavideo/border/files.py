"""Files from outside, opened and read: regular ones alone, without ever blocking, and no more of them than expected."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from megavideo.border.refused import Refused

KB, MB, GB = 1 << 10, 1 << 20, 1 << 30
MOST_BYTES = 256 * MB
MOST_LINE_BYTES = 16 * MB
_BLOCK_BYTES = 64 * KB
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_descriptor(path: str | os.PathLike[str]) -> int:
    """Descriptor of a regular file, opened for reading; the caller closes it.

    Raises Refused for anything else, which is not even opened, and OSError as the system does.
    """
    try:
        _check_regular(os.stat(path))
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError as error:  # a null in the name
        raise error if isinstance(error, Refused) else Refused(str(error)) from error
    try:
        _check_regular(os.fstat(descriptor))  # it may be another one by now
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, opened for reading; Refused for anything else, OSError as the system does."""
    return os.fdopen(open_descriptor(path), "rb")


def check_file(path: str | os.PathLike[str]) -> os.stat_result:
    """What the system says of a regular file; Refused for anything else, OSError as the system does."""
    try:
        found = os.stat(path)
    except ValueError as error:
        raise Refused(str(error)) from error
    _check_regular(found)
    return found


def read_file(path: str | os.PathLike[str], most_bytes: int = MOST_BYTES) -> bytes:
    """The content of a regular file of at most `most_bytes`; Refused for anything else, OSError as the system does."""
    with open_file(path) as file:
        return read_all(file, most_bytes)


def read_all(file: BinaryIO, most_bytes: int = MOST_BYTES) -> bytes:
    """What is left of an open file; Refused where that is more than `most_bytes`."""
    size = os.fstat(file.fileno()).st_size
    parts, num_bytes = [], 0
    while num_bytes <= most_bytes >= size and (part := file.read(min(most_bytes, max(size, _BLOCK_BYTES)) + 1)):
        parts.append(part)
        num_bytes += len(part)
    if max(size, num_bytes) > most_bytes:
        raise Refused(f"it has {max(size, num_bytes)} bytes or more, and at most {most_bytes} are read")
    return b"".join(parts)


def read_lines(file: BinaryIO, most_bytes: int = MOST_LINE_BYTES) -> Iterator[bytes]:
    """The lines of an open file, with their ends; Refused where one is longer than `most_bytes`."""
    while line := file.readline(most_bytes + 1):
        if len(line) > most_bytes:
            raise Refused(f"a line is longer than {most_bytes} bytes")
        yield line


def _check_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in _KINDS if test(found.st_mode)), "no file")
        raise Refused(f"it is {kind}, and a regular file is needed")
