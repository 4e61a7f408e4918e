"""Rates, ETA and the progress line."""

from __future__ import annotations

import logging
import math

import pytest

from megavideo.observe.progress import (
    Rates,
    StepResult,
    TrainingProgress,
    eta_seconds,
    format_bytes,
    format_count,
    format_seconds,
    mfu,
    progress_line,
)


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950.4, "950"), (999.6, "1.00k"), (12345, "12.3k"), (99960, "100k"), (4.56e6, "4.56M"), (7e12, "7000G")],
)
def test_format_count(value: float, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (192, "3m12s"), (18420, "5h07m"), (183600, "2d03h"), (math.nan, "?")],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_eta_and_mfu() -> None:
    assert eta_seconds(10, [1.0, 3.0]) == 20.0
    assert eta_seconds(0, []) == 0.0
    assert math.isnan(eta_seconds(3, []))
    assert mfu(6e12, 2.0, 10e12) == pytest.approx(0.3)
    assert mfu(6e12, 2.0, None) is None


def test_line() -> None:
    assert progress_line(7, 1000, 0.12345, 1.5, Rates(0.5, 12345.0, 0.342, 192.0)) == (
        "step    7/1000  loss 0.1235  grad 1.500  12.3k tokens/s  MFU 34.2 %  ETA 3m12s"
    )
    assert "MFU" not in progress_line(7, 1000, 0.1, 1.5, Rates(0.5, 12345.0, None, 192.0))


def test_run_logs_every_n_steps_and_the_last(caplog: pytest.LogCaptureFixture) -> None:
    clock = _Clock()
    progress = TrainingProgress(total_steps=10, log_every=4, first_step=2, peak_flops_per_second=100.0, clock=clock)
    rates = []
    with caplog.at_level(logging.INFO, logger="megavideo.observe.progress"):
        for step in range(3, 11):
            clock.now += 30.0 if step == 3 else 2.0  # the first step warms up
            loss = math.nan if step == 5 else float(step)
            rates.append(progress.step(step, StepResult(loss, 0.5, num_tokens=1000, flops=100.0)))
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split()[1] for line in lines] == ["4/10", "8/10", "10/10"]
    assert "loss 7.0000" in lines[1]  # the mean of 6, 7 and 8: step 5 has none
    assert "ETA 4s" in lines[1] and "ETA 0s" in lines[2]
    assert rates[0].eta_seconds == 7 * 30.0
    assert rates[1] == Rates(2.0, 500.0, 0.5, 12.0)


def test_sizes_have_three_digits() -> None:
    sizes = (0, 950, 999.6, 2_843_304, 3.2e12, 1e15)
    assert [format_bytes(size) for size in sizes] == ["0 B", "950 B", "1 kB", "2.84 MB", "3.2 TB", "1,000 TB"]
