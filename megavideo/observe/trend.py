"""Whether a loss falls: means of two neighbouring windows, with the noise that they carry."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["falling", "rising", "flat", "unknown"]
_CERTAIN = 2.0  # standard errors


@dataclass(frozen=True)
class Trend:
    """The mean loss of the last `steps` steps beside that of as many before.

    `change` is relative to the earlier mean; below two standard errors the direction is flat, and with fewer than four
    losses it is unknown.
    """

    mean: float
    steps: int
    direction: Direction
    change: float | None


def trend_of(losses: Sequence[tuple[int, Any]], window: int) -> Trend | None:
    """The trend of (step, loss) pairs, of which those without a finite loss are passed over; None without any.

    `window` is 2 or more. Where there are fewer than two windows of losses, the later half is compared with the earlier
    one. Neighbouring losses are taken as independent, which holds for losses of different clips and noise.
    """
    values = [float(loss) for _, loss in losses if isinstance(loss, int | float) and math.isfinite(loss)]
    if not values:
        return None
    if len(values) < 4:
        return Trend(statistics.fmean(values), len(values), "unknown", None)
    size = min(window, len(values) // 2)
    newer, older = values[-size:], values[-2 * size : -size]
    mean, before = statistics.fmean(newer), statistics.fmean(older)
    error = math.sqrt((statistics.variance(newer) + statistics.variance(older)) / size)
    change = (mean - before) / abs(before) if before else None
    if abs(mean - before) <= _CERTAIN * error:
        return Trend(mean, size, "flat", change)
    return Trend(mean, size, "falling" if mean < before else "rising", change)
