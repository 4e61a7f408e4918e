"""The whole report of a run as one value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megavideo.observe.report.numbers import Change, Save, StageNumbers, saves_of, stage_numbers, whole_run
from megavideo.observe.report.record import RunRecord, changes_since
from megavideo.observe.report.samples import sample_steps
from megavideo.observe.rows import Row
from megavideo.observe.status import read_status

_WINDOW_STEPS = 100


@dataclass(frozen=True)
class RunReport:
    """The numbers behind the page at `page`. `share` is how much of the run is done, 0..1.

    `faults` and `validations` are rows as they were recorded, `changes` the settings that differ from those of an
    earlier start, by the file that kept them. `checkpoints` are those of the run folder; `checkpoints_at` is the store
    where they are instead. `whole` is None where no step was made.
    """

    page: str
    run: str
    name: str
    state: str
    note: str
    step: int
    steps: int | None
    share: float | None
    whole: StageNumbers | None
    stages: tuple[StageNumbers, ...]
    num_faults: int
    faults_by_kind: dict[str, int]
    faults: tuple[Row, ...]
    validations: tuple[Row, ...]
    saves: tuple[Save, ...]
    checkpoints: tuple[int, ...]
    checkpoints_at: str | None
    sample_steps: tuple[int, ...]
    changes: dict[str, tuple[Change, ...]]
    damaged: tuple[str, ...]


def summarise(record: RunRecord, page: Path) -> RunReport:
    """The report of a run whose page is `page`."""
    status = read_status(record.folder.root, _WINDOW_STEPS)
    given: dict[str, Any] = {"validations": record.validations, "faults": record.faults}
    changes = changes_since(record)
    return RunReport(
        page=str(page),
        run=status.run,
        name=status.name,
        state=status.state,
        note=status.note,
        step=status.step,
        steps=status.steps,
        share=status.share,
        whole=whole_run(record.series, status.steps, **given),
        stages=stage_numbers(record.series, record.stages, **given),
        num_faults=len(record.faults),
        faults_by_kind=status.faults,
        faults=record.faults,
        validations=record.validations,
        saves=saves_of(record.series),
        checkpoints_at=status.checkpoints_at,
        checkpoints=tuple(step for step, _ in record.checkpoints),
        sample_steps=tuple(sample_steps(record.folder.samples)),
        changes=changes,
        damaged=record.damaged,
    )
