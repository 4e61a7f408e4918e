"""Files of tensors from outside: safetensors alone, which hold no code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megavideo.border.files import check_file
from megavideo.border.refused import Refused


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
