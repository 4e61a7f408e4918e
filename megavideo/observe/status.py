"""How a run stands, from the files of its folder alone: it may be at work, dead, empty or damaged."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megavideo.errors import DataError
from megavideo.observe.liveness import State, fault_age, state_of
from megavideo.observe.owner import OwnerStatus, owners_of
from megavideo.observe.progress import eta_seconds
from megavideo.observe.rows import Row
from megavideo.observe.run_folder import RunFolder, folder_content
from megavideo.observe.salvage import Salvage, last_rows, read_settings, salvage_rows
from megavideo.observe.stages import StageRow, has_ended, merge_stages, planned_steps
from megavideo.observe.trend import Trend, trend_of

_PACE_STEPS = 50  # as many as the ETA in a run's own log


@dataclass(frozen=True)
class StageStatus:
    """The stage that a run is in. `step` counts from its beginning."""

    name: str
    number: int
    of: int
    step: int
    steps: int
    eta_seconds: float | None


@dataclass(frozen=True)
class Speed:
    """Means of the last steps. `mfu` (0..1) and memory are None where they are not recorded."""

    tokens_per_second: float | None
    seconds_per_step: float
    mfu: float | None
    host_memory_gb: float | None
    device_memory_gb: float | None


@dataclass(frozen=True)
class CheckpointStatus:
    """The newest whole checkpoint of the run folder."""

    step: int
    age_seconds: float


@dataclass(frozen=True)
class ValidationStatus:
    """The newest loss on held-out clips, by the weights and by their average."""

    step: int
    loss: float | None
    loss_ema: float | None


@dataclass(frozen=True)
class FaultStatus:
    """A fault as it was last met; `age_seconds` is None in rows without a time."""

    kind: str
    step: int
    reason: str
    age_seconds: float | None


@dataclass(frozen=True)
class RunStatus:
    """How one run stands. `note` says why it is in `state`, and `damaged` what could not be read.

    `faults` counts rows of faults.jsonl by kind, and `owner` is the start that holds the folder. Ages and times are in
    seconds. What is not known is None.
    """

    run: str
    name: str
    state: State
    note: str
    step: int
    steps: int | None
    age_seconds: float | None
    eta_seconds: float | None = None
    stage: StageStatus | None = None
    loss: Trend | None = None
    speed: Speed | None = None
    checkpoint: CheckpointStatus | None = None
    checkpoints_at: str | None = None
    validation: ValidationStatus | None = None
    faults: dict[str, int] = field(default_factory=dict)
    last_fault: FaultStatus | None = None
    owner: OwnerStatus | None = None
    damaged: tuple[str, ...] = ()

    @property
    def share(self) -> float | None:
        """How much of the run is done, 0..1; where its steps are unknown, by stages as if they were of one length."""
        if self.steps:
            return min(self.step / self.steps, 1.0)
        if self.stage is None or not self.stage.steps:
            return None
        return min((self.stage.number - 1 + min(self.stage.step / self.stage.steps, 1.0)) / self.stage.of, 1.0)


def find_runs(places: Sequence[str]) -> list[Path]:
    """The run folders that `places` name: each is one, or a folder of them.

    Raises DataError for a place that is missing, no folder, not to be read, or without any run. Runs in it that may not
    be read are passed over.
    """
    found: list[Path] = []
    for text in places:
        place = Path(text)
        children = folder_content(place)
        inside = sorted(child for child in children if _is_run(child))
        if not _is_run(place) and not inside and any(not child.name.startswith(".") for child in children):
            raise DataError(f"{text}: neither a run folder nor a folder of them. Remedy: name what `output` and `name` "
                            "of the run lead to, as runs/small")  # fmt: skip
        found += [place] if _is_run(place) or not inside else inside
    return found


def read_status(root: Path, window: int, now: float | None = None) -> RunStatus:
    """How the run in `root` stands at `now` (seconds since the epoch; None: the present).

    Losses are averaged over `window` steps. Reads the end of metrics.jsonl only.
    """
    now = time.time() if now is None else now
    folder = RunFolder(root)
    metrics = last_rows(folder.metrics, max(2 * window, _PACE_STEPS))
    faults, stage_rows = salvage_rows(folder.faults), salvage_rows(folder.stages)
    validations = salvage_rows(folder.validation)
    settings = read_settings(folder.config)
    stages = merge_stages(stage_rows.rows)
    rows = metrics.rows
    step = rows[-1]["step"] if rows else 0
    steps = planned_steps(settings or {}, stages)
    speed = _speed(rows[-_PACE_STEPS:])
    pace = [speed.seconds_per_step] if speed else []
    age = _age(folder.metrics if rows else folder.config, now)
    done = bool(rows) and (has_ended(stages) or (steps is not None and step >= steps))
    state, note = state_of(done, rows, faults.rows, age, now)
    if state == "stalled" and stages and stages[-1].last_step is not None:
        state, note = "stopped", f"stage {stages[-1].name} is over, and the next one has not begun; {note}"
    stage = _stage(stages, step, pace)
    newest = rows[-1].get("stage") if rows else None
    within = [row for row in rows if row.get("stage") == newest]  # the loss of another stage is another thing
    return RunStatus(
        str(root),
        str((settings or {}).get("name") or root.resolve().name),
        state,
        note,
        step,
        steps,
        age if rows else None,
        eta_seconds(steps - step, pace) if steps and pace and state == "running" else None,
        stage,
        trend_of([(row["step"], row.get("loss")) for row in within if not row.get("skipped")], window),
        speed,
        _checkpoint(folder.checkpoints, now),
        _checkpoints_at(settings or {}),
        _validation(validations),
        dict(Counter(str(row.get("kind")) for row in faults.rows)),
        _fault(faults.rows[-1], now) if faults.rows else None,
        next(iter(owners_of(root, now)), None),
        _damage(folder, settings, metrics, faults, stage_rows, validations),
    )


def _stage(stages: Sequence[StageRow], step: int, pace: list[float]) -> StageStatus | None:
    if not stages or not stages[-1].name:
        return None
    newest = stages[-1]
    done = max(step - newest.first_step + 1, 0)
    left = eta_seconds(newest.steps - done, pace) if newest.steps and pace and newest.last_step is None else None
    return StageStatus(newest.name, newest.number, newest.of, done, newest.steps, left)


def _speed(rows: list[Row]) -> Speed | None:
    """Over the last rows; the first of a start, which warms up, would mislead only where there are few."""
    timed = [row for row in rows if _number(row.get("seconds"))]
    timed = timed[1:] if len(timed) > 1 else timed
    if not timed:
        return None
    seconds = sum(float(row["seconds"]) for row in timed)
    tokens = [value for row in timed if (value := _number(row.get("tokens"))) is not None]
    useful = [value * row["seconds"] for row in timed if (value := _number(row.get("mfu"))) is not None]
    last = timed[-1]
    return Speed(
        sum(tokens) / seconds if len(tokens) == len(timed) else None,
        seconds / len(timed),
        sum(useful) / seconds if len(useful) == len(timed) else None,
        _number(last.get("host_memory_gb")),
        _number(last.get("device_memory_gb")),
    )


def find_checkpoints(checkpoints: Path) -> list[tuple[int, float]]:
    """Step and time, in seconds since the epoch, of the whole checkpoints, oldest first.

    By names and times of files alone: a manifest of a large run is megabytes.
    """
    found = []
    for manifest in checkpoints.glob("step_*/manifest.json"):
        step = manifest.parent.name.removeprefix("step_")
        if step.isdecimal():
            with contextlib.suppress(OSError):  # removed since it was found, or not to be read
                found.append((int(step), manifest.stat().st_mtime))
    return sorted(found)


def _checkpoint(checkpoints: Path, now: float) -> CheckpointStatus | None:
    found = find_checkpoints(checkpoints)
    if not found:
        return None
    step, written = found[-1]
    return CheckpointStatus(step, max(now - written, 0.0))


def _checkpoints_at(settings: Mapping[str, Any]) -> str | None:
    uri = _setting(settings, "checkpoint", "uri")
    return str(uri) if uri and _setting(settings, "checkpoint", "through_folder") is False else None


def _validation(found: Salvage) -> ValidationStatus | None:
    if not found.rows:
        return None
    row = found.rows[-1]
    return ValidationStatus(row["step"], _number(row.get("loss")), _number(row.get("loss_ema")))


def _fault(row: Row, now: float) -> FaultStatus:
    return FaultStatus(str(row.get("kind")), row["step"], str(row.get("reason") or ""), fault_age(row, now))


def _damage(folder: RunFolder, settings: Mapping[str, Any] | None, *read: Salvage) -> tuple[str, ...]:
    """What could not be read of the settings, and of metrics, faults, stages and validations."""
    named = zip((folder.metrics, folder.faults, folder.stages, folder.validation), read, strict=True)
    lines = [f"{path.name}: {found.damaged} damaged lines" for path, found in named if found.damaged]
    if settings is None and folder.config.exists():
        lines.append(f"{folder.config.name}: cannot be read")
    return tuple(lines)


def _is_run(place: Path) -> bool:
    folder = RunFolder(place)
    return os.path.isfile(folder.config) or os.path.isfile(folder.metrics)  # False as well where one may not look


def _age(path: Path, now: float) -> float | None:
    try:
        return max(now - path.stat().st_mtime, 0.0)
    except OSError:
        return None


def _setting(settings: Mapping[str, Any], section: str, name: str) -> Any:
    inner = settings.get(section)
    return inner.get(name) if isinstance(inner, Mapping) else None


def _number(value: Any) -> float | None:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if whole else None
