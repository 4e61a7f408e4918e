"""`faults.jsonl`: what went wrong in a run, one JSON object a line, written by any rank at any time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from megavideo.observe.rows import drop_rows, record_row
from megavideo.observe.salvage import salvage_rows

FaultKind = Literal[
    "non_finite", "spike", "rollback", "save_failed", "restart", "straggler", "signal", "hang", "fallback"
]
FAULT_KINDS: tuple[str, ...] = get_args(FaultKind)
# They tell of starts and machines, and do not come again when a step is made again.
_LASTING = {"rollback", "restart", "signal", "hang", "fallback"}


class FaultLog:
    """Appends rows `{"step": s, "kind": k, "time": t, ...}`; each is in the file when `write` returns.

    A run that continues from step s first drops the faults of later steps, which are made again. What tells of starts
    and machines stays (`rollback`, `restart`, `signal`, `hang`, `fallback`), and so does all that came before a
    rollback, because the data of those steps is passed over from then on.
    """

    def __init__(self, path: Path, resume_step: int | None = None, clock: Callable[[], datetime] | None = None) -> None:
        """Write to `path`. `resume_step` None drops nothing, as on ranks that only add to what the first one keeps."""
        self.path = path
        self._clock = clock or (lambda: datetime.now(UTC))
        if resume_step is not None and path.exists():
            self._drop_after(resume_step)

    def write(self, step: int, kind: FaultKind, **fields: Any) -> None:
        """Append a fault of `step`, counted as in metrics.jsonl, with the fields of its kind.

        Fields are numbers, texts, None, or lists and mappings of them. Numbers that JSON lacks are written as text,
        because here they are the news. A row that cannot be written ends no run: it is logged instead.
        """
        time = self._clock().isoformat(timespec="seconds")
        row = {"step": step, "kind": kind, "time": time} | {name: _told(value) for name, value in fields.items()}
        record_row(self.path, row)

    def _drop_after(self, step: int) -> None:
        kinds = [row.get("kind") for row in salvage_rows(self.path).rows]
        settled = max((place + 1 for place, kind in enumerate(kinds) if kind == "rollback"), default=0)
        drop_rows(
            self.path,
            lambda place, row: row["step"] <= step or row.get("kind") in _LASTING or place < settled,
        )


def _told(value: Any) -> Any:
    if not isinstance(value, float) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _told(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_told(item) for item in value]
    return value
