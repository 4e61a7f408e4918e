"""Whether a run is at work, told from what it last wrote and when: no process is asked, so it may run anywhere."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from megavideo.observe.progress import format_seconds
from megavideo.observe.rows import Row

State = Literal["running", "finished", "stopped", "stalled", "starting", "empty"]
_PATIENCE_SECONDS = 60.0
_PATIENCE_STEPS = 10.0
_START_SECONDS = 900.0  # data, compilation and a restored checkpoint come before the first step
_ENDING = {"signal": "asked to stop", "hang": "a rank hung"}


def state_of(
    done: bool, rows: Sequence[Row], faults: Sequence[Row], age: float | None, now: float
) -> tuple[State, str]:
    """The state of a run and why, from its last metrics `rows` and its faults.

    `done` says that all steps are made, and `age` is that of the newest row, or of the settings where there is no row
    (None: neither), in seconds at `now`. A run counts as stalled after ten usual steps, or twice the longest of the
    last ones, which had a checkpoint or a validation in them, and no sooner than after a minute.
    """
    if age is None:
        return "empty", "nothing was written here yet"
    if done:
        return "finished", f"the last step was {format_seconds(age)} ago"
    seconds = [float(row["seconds"]) for row in rows if isinstance(row.get("seconds"), int | float)]
    usual = statistics.median(seconds) if seconds else math.nan
    patience = max(_PATIENCE_SECONDS, _PATIENCE_STEPS * usual, 2 * max(seconds)) if seconds else _PATIENCE_SECONDS
    ending = _ending(faults, rows[-1]["step"] if rows else 0, age + patience, now)
    if ending is not None:
        return "stopped", ending
    if not rows:
        return ("starting" if age < _START_SECONDS else "stalled"), f"started {format_seconds(age)} ago, no step yet"
    if age > patience and (begun := _restarted(faults, age, now)) is not None:
        return "starting", f"started again {format_seconds(begun)} ago, no step since"
    if age <= patience:
        return "running", f"the last step was {format_seconds(age)} ago"
    pace = f", where one takes {usual:.3g} s" if seconds else ""
    return "stalled", f"no step for {format_seconds(age)}{pace}"


def fault_age(row: Row, now: float) -> float | None:
    """Seconds since a fault was written; None where its row has no time that can be read."""
    try:
        return max(now - datetime.fromisoformat(str(row.get("time"))).timestamp(), 0.0)
    except ValueError:
        return None


def _restarted(faults: Sequence[Row], age: float, now: float) -> float | None:
    """How many seconds ago the run was started again, if that was since its last step, and not too long ago."""
    begun = fault_age(faults[-1], now) if faults and faults[-1].get("kind") == "restart" else None
    return begun if begun is not None and begun < min(age, _START_SECONDS) else None


def _ending(faults: Sequence[Row], step: int, oldest: float, now: float) -> str | None:
    """Why the run came to its end, if the last fault says so and is no older than `oldest` seconds."""
    last = faults[-1] if faults else None
    kind = None if last is None else str(last.get("kind"))
    if last is None or kind not in _ENDING or last["step"] < step:
        return None
    age = fault_age(last, now)
    if age is not None and age > oldest:
        return None  # it has gone on since, from a checkpoint before that step
    reason = last.get("reason") or _ENDING[kind]
    if kind == "hang" and "rank" in last:
        doing = f": {last['doing']}" if last.get("doing") else ""
        reason = f"rank {last['rank']} hung{doing}"
    return f"{reason}, at step {last['step']:,}"
