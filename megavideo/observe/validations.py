"""`validation.jsonl`: the loss on clips that are not trained on, one JSON object for each time that it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megavideo.observe.rows import drop_rows, record_row


class ValidationLog:
    """Appends rows `{"step": s, "stage": name, ...}`; each is in the file when `write` returns.

    A run that continues from step s first drops the rows of later steps, which are measured again.
    """

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        """Write to `path`, keeping its rows up to and including `resume_step`."""
        self.path = path
        self.rewind(resume_step)

    def write(self, step: int, stage: str, values: Mapping[str, Any]) -> None:
        """Append what was measured after `step` steps of the run.

        Values are `loss` and `loss_ema` (None without an average), `levels` [L] (0 clean, 1 noise) with `by_level` [L]
        and `by_level_ema` [L], and `cells`, a list of {`level`, `area`, `frames`, `loss`, `loss_ema`, `count`} with the
        pixels of a frame, the frames and the number of clips. A row that cannot be written ends no run: it is logged.
        """
        record_row(self.path, {"step": step, "stage": stage} | dict(values))

    def rewind(self, step: int) -> None:
        """Drop the rows after `step`, where a run goes back to a checkpoint."""
        drop_rows(self.path, lambda _, row: row["step"] <= step)
