"""Waiting for other ranks: asking again and again, less and less often, and never for ever."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

_FIRST_SECONDS, _MOST_SECONDS, _GROWTH = 0.005, 1.0, 1.5


class Patience:
    """How long a rank waits for what others write: `limit_seconds`, but `leave_seconds` once the run is leaving."""

    def __init__(self, limit_seconds: float, leave_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self._leave_seconds = leave_seconds
        self._leaving = threading.Event()
        self._left_at = 0.0

    def leave(self) -> None:
        """The run ends: whoever has not written by now hardly will."""
        if not self._leaving.is_set():
            self._left_at = time.monotonic()
            self._leaving.set()

    def wait_for(
        self, find: Callable[[], Found | None], times: int = 1, most_seconds: float = math.inf
    ) -> Found | None:
        """What `find` returns as soon as it is not None; None after so many times the limit, or `most_seconds`."""
        begin, pause = time.monotonic(), _FIRST_SECONDS
        while (found := find()) is None:
            now = time.monotonic()
            end = begin + min(times * self.limit_seconds, most_seconds)
            if self._leaving.is_set():
                end = min(end, self._left_at + times * self._leave_seconds)
                time.sleep(pause)
            else:
                self._leaving.wait(pause)
            if now > end:
                return None
            pause = min(_MOST_SECONDS, pause * _GROWTH)
        return found
