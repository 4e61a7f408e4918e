"""Clips at a rate of one's own choosing: of each moment the nearest frame, by real times."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from megavideo.data.clips.resample import FrameUse, at_rate, num_frames_at
from megavideo.data.clips.resize import FrameWindow


@dataclass
class Shown:
    """A frame of which only the time matters."""

    seconds: float


def chosen(times: list[float], fps: float, window: FrameWindow) -> list[int]:
    frames: Any = [Shown(seconds) for seconds in times]
    return [number for number, _ in at_rate(frames, fps, window)]


def average(times: list[float]) -> float:
    return (len(times) - 1) / (times[-1] - times[0])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fps", [5.0, 16.0, 23.976, 60.0])
def test_each_frame_is_the_nearest_in_time(seed: int, fps: float) -> None:
    rng = np.random.default_rng(seed)
    times = (7.0 + np.cumsum(rng.choice([0.0, 0.02, 0.04, 0.21], 80) + rng.random(80) / 300)).tolist()
    count = num_frames_at(len(times), average(times), fps)
    assert (count - 1) / fps <= times[-1] - times[0] + 0.02 / fps < (count + 0.02) / fps
    window = FrameWindow(3, count - 5)
    grid = times[0] + (3 + np.arange(window.count)) / fps
    distances = np.abs(np.array(times)[None] - grid[:, None])
    assert chosen(times, fps, window) == distances.argmin(axis=1).tolist()


@pytest.mark.parametrize(
    ("rate", "fps", "numbers"),
    [
        (24.0, 24.0, [0, 1, 2, 3, 4, 5, 6]),
        (24.0, 16.0, [0, 1, 3, 4, 6, 7, 9]),
        (60.0, 16.0, [0, 4, 7, 11, 15, 19, 22]),
        (8.0, 16.0, [0, 0, 1, 1, 2, 2, 3]),
    ],
)
@pytest.mark.parametrize("decimals", [3, 9])
def test_even_rates_also_with_rounded_clocks(rate: float, fps: float, numbers: list[int], decimals: int) -> None:
    times = [round(number / rate, decimals) for number in range(40)]
    assert chosen(times, fps, FrameWindow(0, 7)) == numbers


def test_a_clock_that_leads_back_takes_no_time() -> None:
    times = [number / 10 for number in range(10)] + [number / 10 for number in range(10)]
    assert chosen(times, 10.0, FrameWindow(0, 19)) == [*range(10), *range(11, 20)]
    assert chosen([0.0, 0.1], 10.0, FrameWindow(0, 4)) == [0, 1, 1, 1]


def test_no_more_is_read_than_is_needed() -> None:
    def frames() -> Any:
        yield from (Shown(number / 10) for number in range(6))
        raise AssertionError("one frame after the last moment is enough")

    assert [number for number, _ in at_rate(frames(), 10.0, FrameWindow(1, 4))] == [1, 2, 3, 4]


def test_use_is_counted() -> None:
    assert FrameUse.of(20, [3, 3, 5, 6, 9, 9, 9]) == FrameUse(20, used=4, skipped=3, doubled=3)
    assert all(a <= b for a, b in pairwise(num_frames_at(97, rate / 10, 16.0) for rate in range(600, 10, -1)))
    assert (num_frames_at(97, 24.0, 16.0), num_frames_at(1, 30.0, 16.0)) == (65, 1)
