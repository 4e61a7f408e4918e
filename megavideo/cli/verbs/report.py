"""`megavideo report`: one page on a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megavideo.cli.verb import Texts, Verb, Words
from megavideo.config.schema.report import ReportRun
from megavideo.errors import ConfigError

_RUN = Words("RUN", "a run folder")


def _run(cfg: ReportRun, texts: Texts) -> Any:
    words = texts.get(_RUN.metavar, ())
    if len(words) + (cfg.run is not None) > 1:
        raise ConfigError("run", [*words, *([cfg.run] if cfg.run else [])], "takes one run", "write a page for each")
    place = cfg.run if cfg.run is not None else next(iter(words), None)
    if place is None:
        raise ConfigError("run", None, "is required", "write `megavideo report RUN` with a run folder, as runs/small")
    from megavideo.observe.report.write import write_report

    return write_report(cfg, Path(place))


def _describe(report: Any) -> str:
    from megavideo.observe.progress import format_count, format_seconds
    from megavideo.observe.status_view import fault_counts

    steps = f"{report.step:,}" + (f" of {report.steps:,}" if report.steps else "")
    lines = [f"{report.name}: {report.state}, {report.note}", f"steps   {steps}"]
    for stage in report.stages:
        losses = [f"{loss:.4f}" for loss in (stage.loss_first, stage.loss_last) if loss is not None]
        lines.append(
            f"{stage.name or 'run'}: steps {stage.first_step:,} to {stage.last_step:,}, {format_count(stage.tokens)} "
            f"tokens in {format_seconds(stage.seconds)}, loss {' to '.join(losses) or 'not finite'}"
        )
    lines += [f"faults  {fault_counts(report.faults_by_kind)}", *report.damaged, f"page    {report.page}"]
    return "\n".join(lines)


VERB = Verb(
    name="report",
    summary="write one page on a run: curves, stages, validation, samples, faults, checkpoints and settings",
    primary="report",
    schema=ReportRun,
    run=_run,
    describe=_describe,
    words=_RUN,
    examples=("megavideo report runs/small", "megavideo report runs/small out=small.html --json"),
)
