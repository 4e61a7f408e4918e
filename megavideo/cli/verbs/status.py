"""`megavideo status`: how runs stand, from the files of their folders."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from dataclasses import dataclass
from typing import Any

from megavideo.cli.verb import TextOption, Texts, Verb, Words
from megavideo.config.schema.status import StatusRun
from megavideo.errors import ConfigError
from megavideo.observe.status import RunStatus

_RUNS = Words("RUN", "a run folder, or a folder of them", repeats=True)
_AT_WORK = ("running", "starting")


@dataclass(frozen=True)
class StatusReport:
    """How each run stands."""

    runs: tuple[RunStatus, ...]


def _run(cfg: StatusRun, texts: Texts) -> StatusReport:
    words = texts.get(_RUNS.metavar, ())
    if cfg.run is not None and words:
        raise ConfigError("run", cfg.run, f"is given beside {words[0]!r}", "name every run as a word, or one with run=")
    if cfg.run is None and not words:
        raise ConfigError("run", None, "is required", "write `megavideo status RUN` with a run folder, as runs/small")
    places = list(words) or [str(cfg.run)]
    return _look(places, cfg.window) if cfg.watch is None else _watch(places, cfg.window, cfg.watch)


def _look(places: list[str], window: int) -> StatusReport:
    from megavideo.observe.status import find_runs, read_status

    return StatusReport(tuple(read_status(root, window) for root in find_runs(places)))


def _watch(places: list[str], window: int, every_seconds: float) -> StatusReport:
    """Look again and again, on standard error, until no run is at work or the user interrupts."""
    from rich.console import Console
    from rich.live import Live

    from megavideo.observe.status_view import renderable

    console = Console(stderr=True)
    report = _look(places, window)
    try:
        if not console.is_terminal:
            while any(run.state in _AT_WORK for run in report.runs):
                _log(report)
                time.sleep(every_seconds)
                report = _look(places, window)
            return report
        with Live(renderable(report.runs), console=console, transient=True, auto_refresh=False) as live:
            while any(run.state in _AT_WORK for run in report.runs):
                time.sleep(every_seconds)
                report = _look(places, window)
                live.update(renderable(report.runs), refresh=True)
    except KeyboardInterrupt:
        logging.getLogger(__name__).debug("interrupted: the last look is reported")
    return report


def _log(report: StatusReport) -> None:
    from megavideo.observe.status_view import plain_text

    for run in report.runs:
        logging.getLogger(__name__).info("%s", "; ".join(plain_text([run]).splitlines()[:2]))


def _describe(report: Any) -> str:
    from megavideo.observe.status_view import plain_text, terminal_text

    if sys.stdout.isatty():
        return terminal_text(report.runs, shutil.get_terminal_size().columns)
    return plain_text(report.runs)


VERB = Verb(
    name="status",
    summary="tell how runs stand: progress, loss, speed, checkpoints, faults, and whether they are at work",
    primary="status",
    schema=StatusRun,
    run=_run,
    describe=_describe,
    words=_RUNS,
    options=(TextOption("--watch", "SECONDS", "look again every so many seconds", sets="watch"),),
    examples=(
        "megavideo status runs/small",
        "megavideo status runs --watch 10",
        "megavideo status runs/a runs/b --json",
    ),
)
