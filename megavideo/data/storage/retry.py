"""Trying again: exponential back-off with jitter, up to a total time, so that an outage ends in one error."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")

# Waits are spread so that ranks do not come back all at once; never the global generator, which belongs to no one here.
_JITTER = random.Random()


@dataclass(frozen=True)
class RetryPolicy:
    """How long a store is waited for.

    `total_seconds` is the time from the first failure on after which none is forgiven; 0 forgives none.
    `stall_seconds` is how long a connection may be silent before it counts as failed. Waits between attempts grow
    from `first_seconds` to `most_seconds`.
    """

    total_seconds: float = 20.0
    stall_seconds: float = 5.0
    first_seconds: float = 0.2
    most_seconds: float = 3.0

    @property
    def longest_seconds(self) -> float:
        """The longest that an operation can stand still before it has ended in a result or an error."""
        return self.total_seconds + self.stall_seconds

    def wait_seconds(self, failures: int) -> float:
        """How long to wait after so many failures: half of the back-off for certain, the other half by chance."""
        backoff = min(self.most_seconds, self.first_seconds * 2 ** min(failures - 1, 16))
        return backoff * (0.5 + 0.5 * _JITTER.random())


def retrying(
    attempt: Callable[[], Result],
    patience: Callable[[Exception], float],
    policy: RetryPolicy,
    on_retry: Callable[[], None],
    name: str,
) -> Result:
    """The result of `attempt`, called again while it fails.

    `patience` tells for how many seconds after the first failure an error may still pass; 0 means never. Raises the
    last error. `on_retry` is called before each further attempt; `name` is what the log calls it.
    """
    failures, outage_begin = 0, 0.0
    while True:
        begin = time.monotonic()
        try:
            return attempt()
        except Exception as error:
            failures += 1
            now = time.monotonic()
            # a connection that stalled was lost when it went silent, not when that was noticed
            outage_begin = outage_begin or max(begin, now - policy.stall_seconds)
            wait = policy.wait_seconds(failures)
            if now - outage_begin + wait > min(patience(error), policy.total_seconds):
                raise
            reason = type(error).__name__
        logging.getLogger(__name__).warning("%s: %s; attempt %d in %.1f s", name, reason, failures + 1, wait)
        time.sleep(wait)
        on_retry()
