"""`stages.jsonl`: when each stage of a run began and ended, one JSON object for each of both.

Steps are counted as in metrics.jsonl, over all stages together and from 1: a stage has the rows
`first_step <= step <= last_step`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from megavideo.observe.rows import drop_rows, record_row
from megavideo.observe.salvage import salvage_rows


@dataclass(frozen=True)
class StageRow:
    """Stage `number` (from 1) `of` so many; `last_step` is None while it runs, `steps` how many are planned.

    A run without a curriculum is one stage without a name.
    """

    name: str
    number: int
    of: int
    first_step: int
    last_step: int | None
    steps: int
    layout: str


class StageLog:
    """Appends the beginnings and ends of stages; each is in the file when the call returns.

    Pages and `status` are drawn from it; where a run stands is told by its checkpoints. So a row that cannot be
    written, as on a full disk, ends no run: it is logged. A run that continues from step s first drops what was written
    of later steps: a stage that began after it begins anew, and one that ended after it is under way again.
    """

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        """Write to `path`, keeping what is true after `resume_step` steps."""
        self.path = path
        self._begun: StageRow | None = None  # the newest of this start, were its row lost
        self.rewind(resume_step)

    def begin(self, stage: StageRow) -> None:
        """Append that `stage` begins, or goes on with another layout or length; nothing where that is known."""
        self._begun = replace(stage, last_step=None)
        if self._begun not in self.rows():
            self._append(self._begun, stage.first_step)

    def end(self, last_step: int) -> None:
        """Append that the newest stage ended with `last_step`. Raises ValueError where no stage has begun."""
        rows = self.rows()
        begun = self._begun or (rows[-1] if rows else None)
        if begun is None:
            raise ValueError(f"{self.path}: no stage has begun that could end")
        ended = replace(begun, last_step=last_step)
        if ended not in rows:
            self._append(ended, last_step)

    def rewind(self, step: int) -> None:
        """Drop what was written of steps after `step`, where a run goes back to a checkpoint."""
        self._begun = None
        drop_rows(self.path, lambda _, row: row["step"] <= max(step, 0))

    def rows(self) -> list[StageRow]:
        """The stages so far, each as it was written last."""
        return merge_stages(salvage_rows(self.path).rows)

    def _append(self, stage: StageRow, step: int) -> None:
        record_row(self.path, {"step": step} | asdict(stage))


def merge_stages(rows: Iterable[Mapping[str, Any]]) -> list[StageRow]:
    """The stages that rows tell of, in order; the last row of a stage counts, and rows without a name are passed over.

    A stage is known by its first step.
    """
    stages: dict[int, StageRow] = {}
    for row in rows:
        if isinstance(row.get("name"), str) and isinstance(row.get("first_step"), int):
            stages[row["first_step"]] = StageRow(
                row["name"],
                _whole(row.get("number"), len(stages) + 1),
                _whole(row.get("of"), 1),
                row["first_step"],
                row["last_step"] if isinstance(row.get("last_step"), int) else None,
                _whole(row.get("steps"), 0),
                str(row.get("layout") or ""),
            )
    return [stages[first] for first in sorted(stages)]


def has_ended(stages: Sequence[StageRow]) -> bool:
    """Whether the last of all stages is over."""
    return bool(stages) and _is_last(stages[-1]) and stages[-1].last_step is not None


def planned_steps(settings: Mapping[str, Any], stages: Sequence[StageRow]) -> int | None:
    """Steps of the whole run: of all stages of its curriculum, or `train.steps`; None where that is not known."""
    begun = {stage.name: stage for stage in stages}
    curriculum = settings.get("stages") or {}
    if curriculum and isinstance(curriculum, Mapping):
        lengths = [_stage_steps(begun.get(name), own, settings) for name, own in curriculum.items()]
        return sum(lengths) if all(lengths) else None
    if stages and stages[-1].steps:
        newest = stages[-1]
        return newest.first_step - 1 + newest.steps if _is_last(newest) else None
    return _steps_in(settings)


def _stage_steps(begun: StageRow | None, own: Any, settings: Mapping[str, Any]) -> int:
    """Steps that a stage took, or is to take; 0 where that is not known."""
    if begun is not None and begun.last_step is not None:
        return begun.last_step - begun.first_step + 1
    if begun is not None and begun.steps:
        return begun.steps
    return (_steps_in(own) if isinstance(own, Mapping) else None) or _steps_in(settings) or 0


def _is_last(stage: StageRow) -> bool:
    return stage.number >= stage.of or not stage.name


def _steps_in(settings: Mapping[str, Any]) -> int | None:
    loop = settings.get("train")
    steps = loop.get("steps") if isinstance(loop, Mapping) else None
    return steps if isinstance(steps, int) else None


def _whole(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise
