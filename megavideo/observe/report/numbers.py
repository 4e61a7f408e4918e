"""The numbers of a run's page, as `megavideo report --json` gives them: stage by stage, and the whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megavideo.observe.report.series import Series
from megavideo.observe.rows import Row
from megavideo.observe.stages import StageRow


@dataclass(frozen=True)
class StageNumbers:
    """What a stage came to. Losses are means over its first and last tenth, without skipped steps.

    Steps whose data is left out after a rollback are `passed_over`, and not among the `skipped`. `wait_share` is how
    much of its time the ranks waited for data; `blocked_seconds` is how long saves held it up in all. Shares and `mfu`
    are 0..1, memory peaks are in 10^9 bytes. What was not recorded is None.
    """

    name: str
    layout: str
    first_step: int
    last_step: int
    planned_steps: int | None
    tokens: float
    seconds: float
    loss_first: float | None
    loss_last: float | None
    validation: float | None
    validation_ema: float | None
    tokens_per_second: float | None
    mfu: float | None
    wait_share: float | None
    skipped: int
    passed_over: int
    faults: dict[str, int]
    saves: int
    blocked_seconds: float
    host_memory_gb: float | None
    device_memory_gb: float | None


@dataclass(frozen=True)
class Save:
    """A checkpoint whose save began after `step`, and how long training waited for it."""

    step: int
    blocked_seconds: float


@dataclass(frozen=True)
class Change:
    """A setting, by its dotted name, before and after a restart."""

    setting: str
    before: Any
    after: Any


def stage_numbers(
    series: Series, stages: Sequence[StageRow], validations: Sequence[Row], faults: Sequence[Row]
) -> tuple[StageNumbers, ...]:
    """Numbers of each stage, by stages.jsonl, or where that is missing by the names in the metrics."""
    if not len(series):
        return ()
    known = list(stages) or _from_names(series)
    starts = [stage.first_step for stage in known]
    ends = [*(start - 1 for start in starts[1:]), int(series.steps[-1])]
    return tuple(
        _numbers(stage, min(stage.last_step or end, end), series, validations, faults)
        for stage, end in zip(known, ends, strict=True)
        if stage.first_step <= series.steps[-1]
    )


def whole_run(
    series: Series, planned: int | None, validations: Sequence[Row], faults: Sequence[Row]
) -> StageNumbers | None:
    """The same over all stages; None without any step. Its losses are of different stages where there are several."""
    if not len(series):
        return None
    first, last = int(series.steps[0]), int(series.steps[-1])
    return _numbers(StageRow("all", 0, 1, first, last, planned or 0, ""), last, series, validations, faults)


def saves_of(series: Series) -> tuple[Save, ...]:
    """Every save that the metrics tell of. One that was begun after step s stands in the row of step s + 1."""
    blocked = series.column("saved_blocked_seconds")
    places = np.flatnonzero(np.isfinite(blocked))
    return tuple(Save(int(series.steps[place]) - 1, float(blocked[place])) for place in places)


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[Change]:
    """The settings that differ; one that is missing is None."""
    changes: list[Change] = []
    for name in sorted({*before, *after}, key=str):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes += changed_settings(old, new, f"{prefix}{name}.")
        elif old != new:
            changes.append(Change(f"{prefix}{name}", old, new))
    return changes


def _from_names(series: Series) -> list[StageRow]:
    return [
        StageRow(name, number, len(series.stages), int(series.steps[begin]), int(series.steps[end - 1]), 0, "")
        for number, (name, begin, end) in enumerate(series.stages, 1)
    ]


def _numbers(
    stage: StageRow, last: int, series: Series, validations: Sequence[Row], faults: Sequence[Row]
) -> StageNumbers:
    within = (series.steps >= stage.first_step) & (series.steps <= last)
    values = {name: column[within] for name, column in series.columns.items()}
    empty = np.full(int(within.sum()), np.nan)
    seconds, tokens = values.get("seconds", empty), values.get("tokens", empty)
    spent = float(np.nansum(seconds))
    losses = values.get("loss", empty)[series.applied()[within]]
    losses = losses[np.isfinite(losses)]
    tenth = max(1, len(losses) // 10)
    measured = [row for row in validations if stage.first_step <= row["step"] <= last]
    blocked = values.get("saved_blocked_seconds", empty)
    return StageNumbers(
        stage.name,
        stage.layout,
        stage.first_step,
        last,
        stage.steps or None,
        float(np.nansum(tokens)),
        spent,
        _mean(losses[:tenth]),
        _mean(losses[-tenth:]),
        _last(measured, "loss"),
        _last(measured, "loss_ema"),
        float(np.nansum(tokens)) / spent if spent and np.isfinite(tokens).any() else None,
        _weighted(values.get("mfu", empty), seconds),
        float(np.nansum(values["stream_wait_seconds"])) / spent if spent and "stream_wait_seconds" in values else None,
        int(np.nansum(values.get("skipped", empty)) - np.nansum(values.get("passed_over", empty))),
        int(np.nansum(values.get("passed_over", empty))),
        dict(Counter(str(row.get("kind")) for row in faults if stage.first_step <= row["step"] <= last)),
        int(np.isfinite(blocked).sum()),
        float(np.nansum(blocked)),
        _peak(values.get("host_memory_gb", empty)),
        _peak(values.get("device_memory_gb", empty)),
    )


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _weighted(values: np.ndarray, weights: np.ndarray) -> float | None:
    """The mean of the finite values by weight; a rate over time is weighted by time."""
    known = np.isfinite(values) & np.isfinite(weights)
    total = float(weights[known].sum())
    return float((values[known] * weights[known]).sum()) / total if total else None


def _peak(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.max()) if len(known) else None


def _last(rows: Sequence[Row], name: str) -> float | None:
    value = rows[-1].get(name) if rows else None
    return float(value) if isinstance(value, int | float) else None
