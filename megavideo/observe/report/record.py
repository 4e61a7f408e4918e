"""All that a run folder holds for its page, read as far as it can be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megavideo.border.files import read_file
from megavideo.border.json_text import parse_json
from megavideo.border.refused import Refused
from megavideo.observe.report.numbers import Change, changed_settings
from megavideo.observe.report.series import Series, read_series
from megavideo.observe.rows import Row
from megavideo.observe.run_folder import RunFolder
from megavideo.observe.salvage import read_settings, salvage_rows
from megavideo.observe.stages import StageRow, merge_stages
from megavideo.observe.status import find_checkpoints


@dataclass(frozen=True)
class RunRecord:
    """The files of a run. `checkpoints` are (step, seconds since the epoch), and `damaged` what could not be read."""

    folder: RunFolder
    series: Series
    stages: tuple[StageRow, ...]
    faults: tuple[Row, ...]
    validations: tuple[Row, ...]
    checkpoints: tuple[tuple[int, float], ...]
    config_text: str
    version: Mapping[str, Any]
    damaged: tuple[str, ...]


def read_record(root: Path) -> RunRecord:
    """Read the folder. What is missing is empty, and what is damaged is named."""
    folder = RunFolder(root)
    series = read_series(folder.metrics)
    found = {path.name: salvage_rows(path) for path in (folder.faults, folder.validation, folder.stages)}
    damaged = {folder.metrics.name: series.damaged} | {name: rows.damaged for name, rows in found.items()}
    faults, validations, stages = (found[path.name].rows for path in (folder.faults, folder.validation, folder.stages))
    return RunRecord(
        folder,
        series,
        tuple(merge_stages(stages)),
        tuple(faults),
        tuple(validations),
        tuple(find_checkpoints(folder.checkpoints)),
        _text(folder.config),
        _json(folder.code_version),
        tuple(f"{name}: {count} damaged lines" for name, count in damaged.items() if count),
    )


def changes_since(record: RunRecord) -> dict[str, tuple[Change, ...]]:
    """What differs from the settings of each earlier start, by the name of the file that kept them."""
    now = read_settings(record.folder.config)
    changes: dict[str, tuple[Change, ...]] = {}
    kept = [path for path in record.folder.root.glob("config.*.yaml") if path.name.split(".")[1].isdecimal()]
    for path in sorted(kept, key=lambda path: int(path.name.split(".")[1])):
        before = read_settings(path)
        if now is not None and before is not None:
            changes[path.name] = tuple(changed_settings(before, now))
    return changes


def _text(path: Path) -> str:
    try:
        return read_file(path).decode("utf-8", errors="replace")
    except (OSError, Refused):
        return ""


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = parse_json(_text(path) or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
