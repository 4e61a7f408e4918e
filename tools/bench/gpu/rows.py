"""What a run of the bench has found so far: rows, a JSON file and a page that are rewritten whole as it goes on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from megavideo.observe.whole_file import write_file

Value = float | int | str
State = Literal["waiting", "running", "done", "cut off"]


@dataclass(frozen=True)
class Row:
    """One measurement, or why there is none.

    A part measures cases, and in each of them what `name` says, side by side with others. Names of values end in their
    units. Every number is finite: one that is not makes the row a failed one.
    """

    part: str
    case: str
    name: str
    status: Literal["ok", "failed", "skipped"]
    values: dict[str, Value] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def measured(cls, part: str, case: str, name: str, values: Mapping[str, Value | None], note: str = "") -> Row:
        """A row of values, of which those that are None are left out."""
        known = {key: value for key, value in values.items() if value is not None}
        odd = [key for key, value in known.items() if not isinstance(value, str) and not math.isfinite(value)]
        for key in odd:
            del known[key]
        if odd:
            return cls(part, case, name, "failed", known, f"not finite: {', '.join(odd)}")
        return cls(part, case, name, "ok", known, note)

    def line(self) -> str:
        """The row as text."""
        said = ", ".join(f"{key} {shown(value)}" for key, value in self.values.items())
        texts = [text for text in (said, self.note) if text]
        mark = "ok  " if self.status == "ok" else "FAIL" if self.status == "failed" else "skip"
        return f"{mark}  {self.part}: {self.case}: {self.name}: {'; '.join(texts)}"


def shown(value: Value) -> str:
    """A value for a reader: four digits, whole numbers in full."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


@dataclass
class PartState:
    """How far a part has come."""

    name: str
    title: str
    state: State = "waiting"
    seconds: float = 0.0


class Results:
    """All rows of a run, written to `json_path` at each of them and to `page_path` after each part."""

    def __init__(
        self,
        json_path: Path,
        page_path: Path,
        facts: Mapping[str, Any],
        titles: Mapping[str, str],
        make_page: Callable[[Mapping[str, Any]], str],
    ) -> None:
        self._json_path = json_path
        self._page_path = page_path
        self._facts = dict(facts)
        self._make_page = make_page
        self._begin = time.monotonic()
        self.parts = [PartState(name, title) for name, title in titles.items()]
        self.rows: list[Row] = []
        self._write()

    def add(self, row: Row) -> None:
        """Print a row and write it down."""
        print(row.line(), flush=True)
        self.rows.append(row)
        self._write()

    def set_state(self, name: str, state: State, seconds: float = 0.0) -> None:
        """Write down how far a part has come, and a page of all that is known."""
        for part in self.parts:
            if part.name == name:
                part.state, part.seconds = state, round(seconds, 1)
        self._write()
        write_file(self._page_path, self._make_page(self.as_json()).encode())

    def count(self, status: str) -> int:
        """Rows of a status."""
        return sum(row.status == status for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        facts = self._facts | {"seconds": round(time.monotonic() - self._begin, 1)}
        return facts | {"parts": [asdict(part) for part in self.parts], "rows": [asdict(row) for row in self.rows]}

    def _write(self) -> None:
        write_file(self._json_path, (json.dumps(self.as_json(), allow_nan=False, indent=1) + "\n").encode())


def value_of(rows: Iterable[Row], key: str, **wanted: str) -> float | None:
    """The number `key` of the first row that has it and whose attributes are as wanted; None where there is none."""
    for row in rows:
        if all(getattr(row, name) == value for name, value in wanted.items()):
            found = row.values.get(key)
            if isinstance(found, (int, float)):
                return float(found)
    return None
