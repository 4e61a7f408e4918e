"""What stands on the page of a run: tables as texts, charts as pictures."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from megavideo.config.schema.report import ReportRun
from megavideo.observe.page import data_uri, render
from megavideo.observe.progress import format_count, format_seconds
from megavideo.observe.report.cells import draw_cells
from megavideo.observe.report.charts import (
    Marks,
    Picture,
    draw_average,
    draw_levels,
    draw_loss,
    draw_training,
)
from megavideo.observe.report.numbers import StageNumbers
from megavideo.observe.report.record import RunRecord
from megavideo.observe.report.samples import prompt_rows
from megavideo.observe.report.summary import RunReport
from megavideo.observe.rows import Row
from megavideo.observe.status_view import fault_counts

_FAULTS_SHOWN, _SAMPLES_NAMED = 100, 4
_BYTES_PER_MEGABYTE = 10**6
_STAGE_HEAD = (
    "stage", "layout", "steps", "tokens", "time", "loss", "held out", "tokens/s", "MFU", "waited", "skipped", "saves",
    "memory",
)  # fmt: skip
_FAULT_COLUMNS = ("step", "kind", "time", "reason", "samples")
_DASH = "–"


@dataclass(frozen=True)
class _Chart:
    title: str
    about: str
    uri: str
    wide: bool


def page_text(cfg: ReportRun, report: RunReport, record: RunRecord, written: str) -> str:
    """The page's HTML."""
    return render(
        "run.html.j2",
        {
            "report": report,
            "written": written,
            "share": report.share,
            "headline": _headline(report),
            "stage_head": _STAGE_HEAD,
            "stage_rows": _stage_rows(report),
            "stage_numeric": tuple(range(2, len(_STAGE_HEAD))),
            "charts": [_embedded(picture) for picture in _pictures(report, record)],
            "samples": prompt_rows(
                record.folder.samples, cfg.sample_steps, cfg.prompts, cfg.video_megabytes * _BYTES_PER_MEGABYTE
            ),
            "fault_counts": fault_counts(report.faults_by_kind),
            "fault_rows": [_fault_row(row) for row in report.faults[-_FAULTS_SHOWN:]],
            "checkpoint_rows": _checkpoint_rows(report, record),
            "changes": [
                (name, [(change.setting, change.before, change.after) for change in rows])
                for name, rows in report.changes.items()
                if rows
            ],
            "version_rows": _version_rows(record),
            "config_text": record.config_text,
        },
    )


def _pictures(report: RunReport, record: RunRecord) -> list[Picture]:
    if not len(record.series):
        return []
    marks = _marks(report, record)
    validations = record.validations
    drawn = [
        draw_loss(record.series, marks, validations),
        draw_cells(validations),
        draw_average(validations, marks),
        draw_levels(validations, marks),
        *draw_training(record.series, marks),
    ]
    return [picture for picture in drawn if picture is not None]


def _marks(report: RunReport, record: RunRecord) -> Marks:
    steps: dict[str, list[int]] = {}
    for row in record.faults:
        steps.setdefault(str(row.get("kind")), []).append(row["step"])
    skipped = record.series.steps[~record.series.applied()]
    return Marks(
        tuple((stage.name, stage.first_step, stage.last_step) for stage in report.stages),
        tuple(steps.get("restart", ())),
        tuple(steps.get("rollback", ())),
        tuple(int(step) for step in skipped),
    )


def _embedded(picture: Picture) -> _Chart:
    return _Chart(picture.title, picture.about, data_uri("image/png", picture.png), picture.wide)


def _headline(report: RunReport) -> list[tuple[str, str]]:
    whole = report.whole
    steps = f"{report.step:,}" + (f" of {report.steps:,}" if report.steps else "")
    if whole is None:
        return [("steps", steps)]
    rows = [
        ("steps", steps),
        ("tokens", format_count(whole.tokens)),
        ("time in steps", format_seconds(whole.seconds)),
        (
            f"loss, last tenth{' of the last stage' if len(report.stages) > 1 else ''}",
            _number(report.stages[-1].loss_last if report.stages else None),
        ),
        ("held-out loss, average", _number(whole.validation_ema)),
        ("tokens/s", _count(whole.tokens_per_second)),
        ("MFU", _percent(whole.mfu)),
        ("waited for data", _percent(whole.wait_share)),
        ("skipped steps", f"{whole.skipped:,}"),
        ("faults", f"{report.num_faults:,}"),
    ]
    return [row for row in rows if row[1] != _DASH]


def _stage_rows(report: RunReport) -> list[tuple[str, ...]]:
    rows = [_stage_row(stage, stage.name or report.name) for stage in report.stages]
    return [*rows, _stage_row(report.whole, "all")] if report.whole is not None and len(rows) > 1 else rows


def _stage_row(stage: StageNumbers, name: str) -> tuple[str, ...]:
    made = stage.last_step - stage.first_step + 1
    planned = f" of {stage.planned_steps:,}" if stage.planned_steps and stage.planned_steps != made else ""
    peaks = [f"{gb:.3g}" for gb in (stage.host_memory_gb, stage.device_memory_gb) if gb is not None]
    return (
        name,
        stage.layout or _DASH,
        f"{made:,}{planned}",
        format_count(stage.tokens),
        format_seconds(stage.seconds),
        f"{_number(stage.loss_first)} to {_number(stage.loss_last)}",
        " / ".join(_number(loss) for loss in (stage.validation, stage.validation_ema) if loss is not None) or _DASH,
        _count(stage.tokens_per_second),
        _percent(stage.mfu),
        _percent(stage.wait_share),
        f"{stage.skipped:,}",
        f"{stage.saves:,}, {stage.blocked_seconds:.3g} s" if stage.saves else _DASH,
        f"{' + '.join(peaks)} GB" if peaks else _DASH,
    )


def _fault_row(row: Row) -> tuple[str, ...]:
    told = [str(row["reason"])] if row.get("reason") else []
    told += [f"{name.replace('_', ' ')} {_plain(row[name])}" for name in row if name not in _FAULT_COLUMNS]
    return (
        f"{row['step']:,}",
        str(row.get("time") or _DASH).replace("T", " ").removesuffix("+00:00"),
        str(row.get("kind")),
        ", ".join(told) or _DASH,
        _samples_named(row.get("samples")),
    )


def _samples_named(samples: Any) -> str:
    if not isinstance(samples, list) or not samples:
        return _DASH
    named = [_sample_text(sample) for sample in samples[:_SAMPLES_NAMED]]
    more = f" and {len(samples) - _SAMPLES_NAMED:,} more" if len(samples) > _SAMPLES_NAMED else ""
    return "; ".join(named) + more


def _sample_text(sample: Any) -> str:
    if not isinstance(sample, dict):
        return str(sample)
    grid = sample.get("grid")
    shown = {"grid": "x".join(map(str, grid))} if isinstance(grid, list) else {}
    facts = [f"{name} {_plain(value)}" for name, value in (sample | shown).items() if name != "sample_id"]
    return f"{sample.get('sample_id')} ({', '.join(facts)})" if facts else str(sample.get("sample_id"))


def _checkpoint_rows(report: RunReport, record: RunRecord) -> list[tuple[str, ...]]:
    """Checkpoints that are there, and saves that the metrics tell of, by step; the newest first."""
    blocked = {save.step: save.blocked_seconds for save in report.saves}
    written = dict(record.checkpoints)
    failed = {row["step"] for row in record.faults if row.get("kind") == "save_failed"}
    newest = max(written, default=0)

    def outcome(step: int) -> str:
        if step in written:
            return datetime.fromtimestamp(written[step], UTC).isoformat(" ", "seconds").removesuffix("+00:00")
        if step in failed:
            return "the save failed"
        if report.checkpoints_at is not None:
            return f"to {report.checkpoints_at}"
        return "removed since" if step < newest else "not finished"

    steps = sorted({*blocked, *written}, reverse=True)[:_FAULTS_SHOWN]
    return [(f"{step:,}", outcome(step), f"{blocked[step]:.3g} s" if step in blocked else _DASH) for step in steps]


def _version_rows(record: RunRecord) -> list[tuple[str, str]]:
    rows = []
    for name, value in record.version.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items() if item)
        rows.append((name.replace("_", " "), " ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows


def _plain(value: Any) -> str:
    """A field of a fault as text: numbers in four digits, lists and mappings item by item."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "; ".join(map(_plain, value))
    if isinstance(value, dict):
        return " ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return str(value)


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{value:#.4g}"


def _percent(value: float | None) -> str:
    return _DASH if value is None else f"{100 * value:.1f} %"


def _count(value: float | None) -> str:
    return _DASH if value is None else format_count(value)
