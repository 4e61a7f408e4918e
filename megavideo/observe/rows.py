"""JSON Lines files of a run: rows with a step, appended whole, and dropped where a run goes back."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from megavideo.border.files import open_file, read_lines
from megavideo.border.json_text import parse_json
from megavideo.border.secrets import Secrets
from megavideo.errors import DataError

Row = dict[str, Any]

_log = logging.getLogger(__name__)
_MOST_STEPS = 10**15


def row_line(row: Mapping[str, Any]) -> str:
    """The line of `row`, with its end and without secrets.

    Non-finite numbers become null, which every JSON reader takes.
    """
    values = {name: _finite(value) for name, value in row.items()}
    return json.dumps(Secrets.of_process().hide_all(values), allow_nan=False) + "\n"


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add `row` to the file, in one write, so that rows of several threads or processes do not mix.

    After a torn line, left by a killed process, the row begins a line of its own. Raises OSError where room is lacking.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        data = b"\n" * torn + row_line(row).encode()
        _write_all(descriptor, data, size)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes, size: int) -> None:
    """Write at the end of a file of `size` bytes; a disk that gets full takes a part, which is then taken back."""
    rest = data
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        if os.fstat(descriptor).st_size == size + len(data) - len(rest):  # else another process has written since
            os.ftruncate(descriptor, size)
        raise


def record_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add `row` as `append_row` does. One that cannot be written, as on a full disk, ends no run: it is logged."""
    try:
        append_row(path, row)
    except OSError as error:
        _log.warning("%s could not be written (%s): %s", path, error, row)


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of the file, one at a time. A torn last line, left by a killed run, is passed over.

    Raises DataError where a line before the last is damaged.
    """
    for _, row in _lines(path):
        yield row


def drop_rows(path: Path, keep: Callable[[int, Row], bool]) -> None:
    """Rewrite the file without the rows that `keep` refuses and without damaged lines, in one move.

    `keep` is asked with the place of a row, from 0, and the row. The file is left untouched where nothing has to go.
    A run does not end for a line of its record that is lost: a damaged one is logged, a torn last one is not. Raises
    DataError where the file cannot be rewritten, as on a full disk: it would tell steps twice.
    """
    if not path.exists() or _is_clean(path, keep):
        return
    damaged: list[str] = []
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for place, (line, row) in enumerate(_lines(path, damaged)):
                if keep(place, row):
                    file.write(line.rstrip(b"\n") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"{path}: rows of steps that are made again cannot be dropped ({error.strerror}). Remedy: free space or "
            "correct the rights, then run the same command again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    if damaged:
        _log.warning("%s: %d damaged lines were dropped; the first was %s", path, len(damaged), damaged[0])


def parse_row(line: bytes) -> Row:
    """The row of a line. Raises ValueError where it is no JSON object with a whole-numbered step."""
    row = parse_json(line.decode("utf-8", errors="replace"))
    if not isinstance(row, dict) or type(row.get("step")) is not int or not 0 <= row["step"] <= _MOST_STEPS:
        raise ValueError("no object with a whole-numbered step")
    return row


def _is_clean(path: Path, keep: Callable[[int, Row], bool]) -> bool:
    """Whether every byte of the file belongs to a whole line that is kept."""
    num_bytes = 0
    for place, (line, row) in enumerate(_lines(path, [])):
        if not keep(place, row) or not line.endswith(b"\n"):
            return False
        num_bytes += len(line)
    return num_bytes == path.stat().st_size


def _lines(path: Path, damaged: list[str] | None = None) -> Iterator[tuple[bytes, Row]]:
    """Lines and their rows; what is wrong with a damaged line goes to `damaged`, or where that is None is raised."""
    with open_file(path) as file:
        for number, line in enumerate(read_lines(file), start=1):
            if line == b"\n":
                continue
            try:
                row = parse_row(line)
            except ValueError as error:
                if not line.endswith(b"\n"):  # only the last line has no end, and only it can be torn
                    return
                if damaged is not None:
                    damaged.append(f"line {number} ({error})")
                    continue
                raise DataError(
                    f"{path}: line {number} is damaged ({error}). Remedy: remove that line; the lines around it are "
                    "whole"
                ) from error
            yield line, row


def _finite(value: Any) -> Any:
    """Return `value` as JSON takes it: array scalars as plain numbers, non-finite numbers as None."""
    if not isinstance(value, float) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
