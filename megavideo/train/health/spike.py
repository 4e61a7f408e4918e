"""When a step's loss is a spike: far over what the last steps had."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

# of fewer losses the median says little
_FEWEST = 8


class SpikeLimit:
    """The largest loss that a step may have: `factor` times the median of the last `window` that were applied.

    `losses` are those that a checkpoint carried, as `state` gave them.
    """

    def __init__(self, factor: float, window: int, losses: Iterable[float] = ()) -> None:
        self._factor = factor
        self._losses: deque[float] = deque(losses, maxlen=window)

    @property
    def limit(self) -> float | None:
        """The limit for the next step; None, which is no limit, until eight losses are known."""
        return self._factor * median(self._losses) if len(self._losses) >= _FEWEST else None

    @property
    def state(self) -> list[float]:
        """The losses that the limit follows from, oldest first."""
        return list(self._losses)

    def add(self, loss: float, *, applied: bool) -> None:
        """Take note of a step; one that was skipped, or whose loss is not finite, does not count."""
        if applied and math.isfinite(loss):
            self._losses.append(loss)
