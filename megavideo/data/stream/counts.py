"""What a stream did, counted in each of its processes and added up in the rank."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class StreamCounts:
    """What a stream did so far, its workers included.

    `hits` are shards found without a fetch, `refetched` those that had been there and were gone, `healed` cached files
    that had gone bad, `retries` further attempts at the store. `read_bytes` are those of samples, `fetched_bytes`
    those that came from the store, `wait_seconds` what reading stood still for shards.
    """

    samples: int = 0
    read_bytes: int = 0
    hits: int = 0
    downloads: int = 0
    fetched_bytes: int = 0
    refetched: int = 0
    evictions: int = 0
    healed: int = 0
    retries: int = 0
    wait_seconds: float = 0.0


def zero_counts() -> Counter[str]:
    """A counter with every whole number of StreamCounts: its keys never change, so another thread may read it."""
    return Counter({field.name: 0 for field in fields(StreamCounts) if field.type == "int"})


class StreamRates:
    """Numbers of a stream for the metrics: rates since they were last asked for, and counts since the start."""

    def __init__(self, counts: Callable[[], StreamCounts]) -> None:
        self._counts = counts
        self._last = counts()
        self._time = time.monotonic()

    def metrics(self) -> dict[str, float]:
        """Samples and megabytes (1e6 bytes) made ready per second, seconds waited for shards, and the counts."""
        now, counts = time.monotonic(), self._counts()
        seconds, last = max(now - self._time, 1e-9), self._last
        self._time, self._last = now, counts
        return {
            "stream_samples_per_second": (counts.samples - last.samples) / seconds,
            "stream_megabytes_per_second": (counts.read_bytes - last.read_bytes) / 1e6 / seconds,
            "stream_fetched_megabytes_per_second": (counts.fetched_bytes - last.fetched_bytes) / 1e6 / seconds,
            "stream_wait_seconds": counts.wait_seconds - last.wait_seconds,
            "stream_hits": counts.hits,
            "stream_downloads": counts.downloads,
            "stream_refetched": counts.refetched,
            "stream_retries": counts.retries,
        }
