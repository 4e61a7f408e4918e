"""The numbers of a run, one JSON object a line: the record that every other view is drawn from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from megavideo.errors import DataError


class MetricsSink(Protocol):
    """A second place for the numbers, beside the JSONL file."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Take the values of one step."""

    def close(self) -> None:
        """Write out what is held back."""


class MetricsWriter:
    """Appends rows `{"step": s, ...}` to a JSONL file, each on disk before `write` returns.

    A run that continues from step s first drops the rows of later steps, and a torn last line, so that a killed run
    leaves each step once. Non-finite numbers become null, which every JSON reader takes.
    """

    def __init__(self, path: Path, resume_step: int = 0, sinks: Sequence[MetricsSink] = ()) -> None:
        """Open `path`, keeping its rows up to and including `resume_step`; `sinks` get every later row as well."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _truncate_after(path, resume_step)
        self._file = path.open("a", encoding="utf-8")
        self._sinks = tuple(sinks)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append the row of `step`. Values are numbers, strings, None, or lists and mappings of them."""
        row = {"step": step} | {name: _finite(value) for name, value in values.items()}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        for sink in self._sinks:
            sink.write(step, values)

    def close(self) -> None:
        """Close the file and the sinks."""
        self._file.close()
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> MetricsWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the writer, whether or not the block failed."""
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics file in order. A torn last line, left by a killed run, is passed over.

    Raises DataError where the file is missing or a line before the last is damaged.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no metrics file. Remedy: name the folder of a run that has started")
    return list(_rows(path))


def numeric_values(values: Mapping[str, Any]) -> dict[str, float]:
    """Return those of `values` that are finite numbers, which is what charts can show."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole rows of `path`."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("no object with a whole-numbered step")
        except ValueError as error:
            if number == len(lines):  # only a line without its end can be torn
                return
            raise DataError(
                f"{path}: line {number} is damaged ({error}). Remedy: remove that line; the lines around it are whole"
            ) from error
        yield row


def _truncate_after(path: Path, step: int) -> None:
    """Rewrite `path` without the rows after `step`, in one move; leave it untouched where nothing has to go."""
    if not path.exists():
        return
    before = path.read_bytes()
    kept = "".join(json.dumps(row) + "\n" for row in _rows(path) if row["step"] <= step)
    if kept.encode() == before:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
