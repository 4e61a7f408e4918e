"""The status of runs as a person reads it: plain lines, or rich's panels and tables on a terminal."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from megavideo.observe.faults import FAULT_KINDS
from megavideo.observe.progress import format_count, format_seconds
from megavideo.observe.status import RunStatus
from megavideo.observe.trend import Trend

_BAR_WIDTH = 30
_COLOURS = {
    "running": "green", "finished": "blue", "starting": "cyan", "empty": "dim", "stopped": "yellow", "stalled": "red",
}  # fmt: skip
_FAULT_WORDS = {
    "non_finite": ("skipped step (not finite)", "skipped steps (not finite)"),
    "spike": ("skipped step (spike)", "skipped steps (spike)"),
    "rollback": ("rollback", "rollbacks"),
    "restart": ("restart", "restarts"),
    "save_failed": ("failed save", "failed saves"),
    "straggler": ("straggler", "stragglers"),
    "hang": ("hang", "hangs"),
    "signal": ("signal", "signals"),
    "fallback": ("fallback to an older checkpoint", "fallbacks to older checkpoints"),
}
_COLUMNS = ("run", "state", "step", "done", "left", "stage", "loss", "trend", "tokens/s", "MFU", "saved", "faults")


def plain_text(runs: Sequence[RunStatus]) -> str:
    """Lines for files and pipes: all that is known of one run, or a row for each of several."""
    if len(runs) != 1:
        return _plain_table([_COLUMNS, *(table_row(run) for run in runs)])
    run = runs[0]
    facts = facts_of(run)
    width = max(len(name) for name, _ in facts)
    return "\n".join(
        [f"{run.name}: {run.state}, {run.note}", *(f"{name.ljust(width)}  {text}" for name, text in facts)]
    )


def terminal_text(runs: Sequence[RunStatus], width: int) -> str:
    """The same with colours, as text with escape codes for a terminal of `width` columns."""
    from rich.console import Console

    target = io.StringIO()
    Console(file=target, force_terminal=True, width=width, highlight=False).print(renderable(runs))
    return target.getvalue().rstrip("\n")


def renderable(runs: Sequence[RunStatus]) -> Any:
    """What rich draws: a panel for one run, a table for several."""
    if len(runs) != 1:
        return _rich_table(runs)
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    run = runs[0]
    colour = _COLOURS[run.state]
    grid = Table.grid(padding=(0, 2))
    for name, text in facts_of(run, bar=False):
        bad = name == "damaged" or (name == "faults" and text != "none")
        grid.add_row(Text(name, style="dim"), Text(text, style="yellow" if bad else ""))
    parts: list[Any] = [Text.assemble((run.state, f"bold {colour}"), f"  {run.note}")]
    if run.share is not None:
        bar = Table.grid(expand=True)  # a bar alone does not end its line
        bar.add_row(ProgressBar(total=1.0, completed=run.share, complete_style=colour, finished_style=colour))
        parts.append(bar)
    return Panel(Group(*parts, grid), title=Text(run.name, style="bold"), subtitle=Text(run.run), title_align="left",
                 subtitle_align="left", border_style=colour)  # fmt: skip


def facts_of(run: RunStatus, bar: bool = True) -> list[tuple[str, str]]:
    """Names and texts of what is known of a run, most wanted first; `bar` draws progress in characters."""
    facts = [("progress", _progress(run, bar))]
    if run.stage is not None:
        stage = run.stage
        steps = f"step {stage.step:,}" + (f" of {stage.steps:,}" if stage.steps else "")
        left = f", {format_seconds(stage.eta_seconds)} left" if stage.eta_seconds else ""
        facts.append(("stage", f"{stage.number} of {stage.of}: {stage.name}, {steps}{left}"))
    if run.loss is not None:
        facts.append(("loss", f"{run.loss.mean:.4f} {_trend_words(run.loss)}"))
    if run.validation is not None:
        facts.append(("validation", _validation(run)))
    if run.speed is not None:
        facts += _speed_facts(run)
    facts.append(("checkpoint", _checkpoint(run)))
    facts.append(("faults", _faults(run)))
    if run.owner is not None:
        facts.append(("owner", str(run.owner)))
    facts += [("damaged", line) for line in run.damaged]
    return facts


def table_row(run: RunStatus) -> tuple[str, ...]:
    """The cells of a run in the table of several."""
    share, loss, speed = run.share, run.loss, run.speed
    quiet = run.state in ("stalled", "running") and run.age_seconds is not None
    return (
        run.name,
        run.state + (f" {format_seconds(run.age_seconds)}" if quiet and run.age_seconds is not None else ""),
        f"{run.step:,}" + (f"/{run.steps:,}" if run.steps else ""),
        "" if share is None else f"{100 * share:.0f} %",
        format_seconds(run.eta_seconds) if run.eta_seconds else "",
        f"{run.stage.number}/{run.stage.of} {run.stage.name}" if run.stage else "",
        f"{loss.mean:.4f}" if loss else "",
        _trend_sign(loss),
        format_count(speed.tokens_per_second) if speed and speed.tokens_per_second is not None else "",
        f"{100 * speed.mfu:.1f} %" if speed and speed.mfu is not None else "",
        f"{run.checkpoint.step:,}, {format_seconds(run.checkpoint.age_seconds)}" if run.checkpoint else "",
        str(sum(run.faults.values()) or ""),
    )


def _progress(run: RunStatus, bar: bool) -> str:
    if run.share is None:
        return f"step {run.step:,}"
    full = round(_BAR_WIDTH * run.share)
    drawn = f"[{'#' * full}{'-' * (_BAR_WIDTH - full)}] " if bar else ""
    left = f", {format_seconds(run.eta_seconds)} left" if run.eta_seconds else ""
    if not run.steps:
        return f"{drawn}{100 * run.share:.0f} % by stages, step {run.step:,}"
    return f"{drawn}{100 * run.share:.1f} %, step {run.step:,} of {run.steps:,}{left}"


def _trend_words(loss: Trend) -> str:
    over = f"over {loss.steps} steps"
    if loss.direction == "unknown" or loss.change is None:
        return over
    if loss.direction == "flat":
        return f"{over}, no change beyond its noise"
    return f"{over}, {loss.direction} {100 * abs(loss.change):.1f} % from the {loss.steps} before"


def _trend_sign(loss: Trend | None) -> str:
    if loss is None or loss.direction == "unknown" or loss.change is None:
        return ""
    return "flat" if loss.direction == "flat" else f"{100 * loss.change:+.1f} %"


def _validation(run: RunStatus) -> str:
    found = run.validation
    if found is None or found.loss is None:
        return "not finite"
    average = f", {found.loss_ema:.4f} by the average" if found.loss_ema is not None else ""
    return f"{found.loss:.4f}{average}, at step {found.step:,}"


def _speed_facts(run: RunStatus) -> list[tuple[str, str]]:
    speed = run.speed
    if speed is None:
        return []
    parts = [f"{format_count(speed.tokens_per_second)} tokens/s"] if speed.tokens_per_second is not None else []
    parts.append(f"{speed.seconds_per_step:.3g} s/step")
    parts += [f"MFU {100 * speed.mfu:.1f} %"] if speed.mfu is not None else []
    facts = [("speed", ", ".join(parts))]
    peaks = [("host", speed.host_memory_gb), ("device", speed.device_memory_gb)]
    known = [f"{name} {gb:.3g} GB" for name, gb in peaks if gb is not None]
    return [*facts, ("peak memory", ", ".join(known))] if known else facts


def _checkpoint(run: RunStatus) -> str:
    elsewhere = f"kept at {run.checkpoints_at}, which is not looked at" if run.checkpoints_at else ""
    if run.checkpoint is None:
        return elsewhere or "none yet"
    return f"step {run.checkpoint.step:,}, {format_seconds(run.checkpoint.age_seconds)} ago"


def fault_counts(faults: Mapping[str, int]) -> str:
    """How many faults of each kind there were, in words; `none` where there were none."""
    order = [*FAULT_KINDS, *sorted(set(faults) - set(FAULT_KINDS))]
    counts = [(faults[kind], _FAULT_WORDS.get(kind, (kind, kind))) for kind in order if faults.get(kind)]
    return ", ".join(f"{number:,} {words[number != 1]}" for number, words in counts) or "none"


def _faults(run: RunStatus) -> str:
    counts, last = fault_counts(run.faults), run.last_fault
    if last is None:
        return counts
    when = f", {format_seconds(last.age_seconds)} ago" if last.age_seconds is not None else ""
    why = f" ({last.reason})" if last.reason else ""
    return f"{counts}; last: {last.kind}{why} at step {last.step:,}{when}"


def _plain_table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns as wide as their widest cell; those that are empty in every run are left out."""
    used = [place for place in range(len(rows[0])) if any(row[place] for row in rows[1:])]
    widths = {place: max(len(row[place]) for row in rows) for place in used}
    return "\n".join("  ".join(row[place].ljust(widths[place]) for place in used).rstrip() for row in rows)


def _rich_table(runs: Sequence[RunStatus]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    rows = [table_row(run) for run in runs]
    used = [place for place in range(len(_COLUMNS)) if any(row[place] for row in rows)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place in used:
        table.add_column(_COLUMNS[place], no_wrap=_COLUMNS[place] in ("run", "step", "loss", "trend", "MFU"))
    for run, row in zip(runs, rows, strict=True):
        styles = {1: _COLOURS[run.state], 11: "yellow"}
        table.add_row(*(Text(row[place], style=styles.get(place, "")) for place in used))
    return table
