"""The account of a stage as plain values, ready for JSON."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from megavideo.planning.changes import Change
from megavideo.planning.stage_plan import StagePlan


def stage_report(plan: StagePlan, changes: tuple[Change, ...] = ()) -> dict[str, Any]:
    """A stage as plain values."""
    memory = plan.memory
    report = {
        name: value
        for name, value in asdict(replace(plan, memory=None, time=None)).items()  # type: ignore[arg-type]
        if name not in ("memory", "time")
    }
    return report | {
        "memory_bytes": {part.name: part.bytes for part in memory.parts},
        "memory_assumed": [part.name for part in memory.parts if part.assumed],
        "memory_moments": memory.moments,
        "memory_peak": memory.peak,
        "host_bytes": memory.host_bytes,
        "pipeline_rank": memory.pp_rank,
        "seconds": plan.time.parts(),
        "seconds_hidden": plan.time.hidden,
        "step_seconds": plan.time.total,
        "tokens_per_second": plan.tokens_per_second,
        "days": plan.hours / 24,
        "gpu_hours": plan.gpu_hours,
        "cost": plan.cost,
        "megawatt_hours": plan.megawatt_hours,
        "would_fit": [asdict(change) for change in changes],
    }
