"""Settings of `megavideo doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DoctorRun:
    """`megavideo doctor` has no settings: it looks at the machine as it is."""
