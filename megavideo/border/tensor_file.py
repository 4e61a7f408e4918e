"""Files of tensors from outside: safetensors alone, which hold no code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megavideo.border.files import GB, check_file, open_file
from megavideo.border.json_text import parse_json
from megavideo.border.refused import Refused

_LENGTH_BYTES = 8  # of the header, little endian, at the begin of a file


@dataclass(frozen=True)
class TensorPlace:
    """A tensor's type as safetensors writes it (`F32`), its shape, and its bytes [begin, end) in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def open_tensors(path: Path, framework: str = "pt") -> Any:
    """A handle of safetensors' `safe_open`, whose header is checked against the file's size.

    It is closed by `with`, or when nothing refers to it. `framework` is "pt" or "np". Raises Refused for a file that is
    not of that format, OSError as the system does. What is asked of it goes through `reading_tensors`.
    """
    from safetensors import SafetensorError, safe_open

    check_file(path)
    try:
        return safe_open(os.fspath(path), framework=framework)
    except SafetensorError as error:
        raise Refused(f"no safetensors file: {error}") from error


def tensor_places(path: Path) -> dict[str, TensorPlace]:
    """Where the tensors lie in a file whose header `open_tensors` has checked; raises as it does."""
    with open_tensors(path), open_file(path) as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > GB:
            raise Refused(f"its header is said to have {length} bytes")
        rows = parse_json(file.read(length), dict[str, _Row | dict[str, str]])
    first = _LENGTH_BYTES + length
    return {
        key: TensorPlace(row.dtype, row.shape, *(first + offset for offset in row.data_offsets))
        for key, row in rows.items()
        if isinstance(row, _Row)
    }


@dataclass(frozen=True)
class _Row:
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@contextmanager
def reading_tensors() -> Iterator[None]:
    """Turn what safetensors and torch say of a key, a slice or a type in the block into Refused."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise Refused(f"what it holds is not what is told of it: {error}") from error


def read_tensors(path: Path, framework: str = "pt") -> dict[str, Any]:
    """All tensors of a safetensors file by name, in memory; raises as `open_tensors` does."""
    with open_tensors(path, framework) as file, reading_tensors():
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def parse_tensors(content: bytes) -> dict[str, Any]:
    """All tensors of the bytes of a safetensors file as numpy arrays; Refused where they are none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(content)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Refused(f"no safetensors file: {error}") from error
