"""The time for which a thread worked, or wanted to: without what it slept, as in a collective that waits for others."""

from __future__ import annotations

import time
from pathlib import Path

# nanoseconds on a CPU, nanoseconds ready but without one, and time slices (Linux, Documentation/scheduler/sched-stats)
_SCHEDSTAT = Path("/proc/thread-self/schedstat")


def worked_seconds() -> float:
    """Seconds that the calling thread has run or stood ready since its start; only differences mean something.

    Ready counts: a thread that another program keeps off its CPU is as slow as one whose CPU is slow. Where the kernel
    does not tell, it is left out.
    """
    try:
        running, ready, _ = _SCHEDSTAT.read_bytes().split()
    except OSError:
        return time.thread_time()
    return (int(running) + int(ready)) / 1e9
