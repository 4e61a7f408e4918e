"""The numbers of a run, one JSON object a line: the record that every other view is drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from megavideo.errors import DataError
from megavideo.observe.rows import drop_rows, read_rows, record_row

if TYPE_CHECKING:
    import numpy as np


class MetricsSink(Protocol):
    """A second place for the numbers, beside the JSONL file."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Take the values of one step."""

    def close(self) -> None:
        """Write out what is held back."""


class MetricsWriter:
    """Appends rows `{"step": s, ...}` to a JSONL file; each can be read there when `write` returns.

    A run that continues from step s first drops the rows of later steps, and damaged lines, so that a killed run
    leaves each step once. Non-finite numbers become null, which every JSON reader takes.
    """

    def __init__(self, path: Path, resume_step: int = 0, sinks: Sequence[MetricsSink] = ()) -> None:
        """Open `path`, keeping its rows up to and including `resume_step`; `sinks` get every later row as well."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        _drop_after(path, resume_step)
        path.touch()
        self._sinks = tuple(sinks)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append the row of `step`. Values are numbers, strings, None, or lists and mappings of them.

        A row that cannot be written, as on a full disk, ends no run: it is logged instead.
        """
        record_row(self._path, {"step": step} | dict(values))
        for sink in self._sinks:
            sink.write(step, values)

    def write_samples(self, step: int, sheet: np.ndarray) -> None:
        """Hand the samples of a step, one picture uint8 [H, W, 3], to the sinks that can show it (`write_samples`)."""
        for sink in self._sinks:
            if hasattr(sink, "write_samples"):
                sink.write_samples(step, sheet)

    def rewind(self, step: int) -> None:
        """Drop the rows after `step`, which a run that went back to a checkpoint makes again.

        Sinks that can (`rewind`) hide what they took of them; the others keep it.
        """
        _drop_after(self._path, step)
        for sink in self._sinks:
            if hasattr(sink, "rewind"):
                sink.rewind(step)

    def close(self) -> None:
        """Close the sinks."""
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
    return list(read_rows(path))


def numeric_values(values: Mapping[str, Any]) -> dict[str, float]:
    """Return those of `values` that are finite numbers, which is what charts can show."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _drop_after(path: Path, step: int) -> None:
    drop_rows(path, lambda _, row: row["step"] <= step)
