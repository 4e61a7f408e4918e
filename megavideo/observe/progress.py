"""How a training run is doing: one log line every few steps, and the rates that the metrics record."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

_WINDOW_STEPS = 50  # the rate behind the ETA: long enough to be calm, short enough to follow a change


@dataclass(frozen=True)
class StepResult:
    """What one step did, over all ranks: its loss, gradient norm, video tokens and model FLOPs."""

    loss: float
    grad_norm: float
    num_tokens: int
    flops: float


@dataclass(frozen=True)
class Rates:
    """How fast a step was. `mfu` (0..1) is None where the peak of the devices is unknown."""

    seconds_per_step: float
    tokens_per_second: float
    mfu: float | None
    eta_seconds: float


class TrainingProgress:
    """Times the steps of a run and logs a line every `log_every` steps and at the last one."""

    def __init__(
        self,
        total_steps: int,
        log_every: int,
        first_step: int = 0,
        peak_flops_per_second: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the clock of a run that continues after step `first_step`; the peak is that of all devices together."""
        self._total_steps = total_steps
        self._log_every = log_every
        self._first_step = first_step
        self._peak = peak_flops_per_second
        self._clock = clock
        self._last_time = clock()
        self._recent_seconds: deque[float] = deque(maxlen=_WINDOW_STEPS)
        self._pending: list[tuple[StepResult, float]] = []
        self._logger = logging.getLogger(__name__)

    def step(self, step: int, result: StepResult) -> Rates:
        """Take the result of `step` (counted from 1), log a line where it is due, and return the step's rates."""
        now = self._clock()
        seconds = max(now - self._last_time, 1e-9)
        self._last_time = now
        if step == self._first_step + 2:
            self._recent_seconds.clear()  # the first step warms up: it would mislead the ETA
        self._recent_seconds.append(seconds)
        self._pending.append((result, seconds))
        eta = eta_seconds(self._total_steps - step, list(self._recent_seconds))
        if step % self._log_every == 0 or step == self._total_steps:
            self._log(step, eta)
            self._pending.clear()
        return Rates(seconds, result.num_tokens / seconds, mfu(result.flops, seconds, self._peak), eta)

    def _log(self, step: int, eta: float) -> None:
        """Log the mean of the steps since the last line."""
        seconds = sum(spent for _, spent in self._pending)
        tokens = sum(result.num_tokens for result, _ in self._pending)
        flops = sum(result.flops for result, _ in self._pending)
        losses = [result.loss for result, _ in self._pending if math.isfinite(result.loss)]
        line = progress_line(
            step=step,
            total_steps=self._total_steps,
            loss=sum(losses) / len(losses) if losses else math.nan,
            grad_norm=self._pending[-1][0].grad_norm,
            rates=Rates(seconds / len(self._pending), tokens / seconds, mfu(flops, seconds, self._peak), eta),
        )
        self._logger.info(line)


def mfu(flops: float, seconds: float, peak_flops_per_second: float | None) -> float | None:
    """Return the model FLOPs utilisation (Chowdhery et al. 2022, PaLM, appendix B): useful FLOPs over the peak's."""
    if not peak_flops_per_second:
        return None
    return flops / seconds / peak_flops_per_second


def eta_seconds(remaining_steps: int, recent_seconds: list[float]) -> float:
    """Return the time left at the mean pace of `recent_seconds`, one entry a step; not a number without any."""
    if remaining_steps <= 0:
        return 0.0
    if not recent_seconds:
        return math.nan
    return remaining_steps * sum(recent_seconds) / len(recent_seconds)


def progress_line(step: int, total_steps: int, loss: float, grad_norm: float, rates: Rates) -> str:
    """Return the log line of one reading."""
    width = len(str(total_steps))
    parts = [
        f"step {step:{width}d}/{total_steps}",
        f"loss {loss:.4f}",
        f"grad {grad_norm:.3f}",
        f"{format_count(rates.tokens_per_second)} tokens/s",
    ]
    if rates.mfu is not None:
        parts.append(f"MFU {100 * rates.mfu:.1f} %")
    parts.append(f"ETA {format_seconds(rates.eta_seconds)}")
    return "  ".join(parts)


def format_count(value: float) -> str:
    """Return a number of tokens in three digits: 950, 12.3k, 4.56M."""
    if not math.isfinite(value):
        return "?"
    for unit in ("", "k", "M", "G"):
        if abs(value) < 999.5 or unit == "G":
            break
        value /= 1000
    digits = 0 if abs(value) >= 99.95 or not unit else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f}{unit}"


def format_bytes(num_bytes: float) -> str:
    """Return a size in three digits or more, in units of a thousand: 950 B, 2.84 MB, 1,200 TB."""
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:,.3g} {unit}" if value < 999.5 else f"{value:,.0f} {unit}"


def format_seconds(seconds: float) -> str:
    """Return a duration in its two largest units: 45s, 3m12s, 5h07m, 2d03h."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
