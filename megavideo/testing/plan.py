"""Step plans of a few samples that are at hand, without a dataset."""

from __future__ import annotations

from collections.abc import Iterable

from megavideo.data.plan.step_plan import PlanSettings, StepPlan
from megavideo.data.table.sample_table import make_table
from megavideo.types import SampleInfo


def plan_of(samples: Iterable[SampleInfo], settings: PlanSettings) -> StepPlan:
    """The plan of samples in any order. Raises DataError where none of them fits a pack."""
    return StepPlan(make_table(samples, tuple(settings.weights or {})), settings)
