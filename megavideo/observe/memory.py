"""The most memory that a process has held so far, of host and device."""

from __future__ import annotations

import resource
import sys

_BYTES_PER_GB = 10**9
# getrusage(2): kilobytes of 1024 on Linux, bytes on macOS
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


def host_peak_bytes() -> int:
    """The largest resident set of this process so far. That of its children, as data workers, is not in it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES


def memory_metrics(device_peak_bytes: int | None) -> dict[str, float | None]:
    """Peaks as metrics, in units of 10^9 bytes.

    `device_peak_bytes` is what the device's allocator tells, as `torch.cuda.max_memory_allocated()`; None on a CPU.
    """
    device = None if device_peak_bytes is None else device_peak_bytes / _BYTES_PER_GB
    return {"host_memory_gb": host_peak_bytes() / _BYTES_PER_GB, "device_memory_gb": device}
