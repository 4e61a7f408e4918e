"""How often a step sees one sample: with few clips under many packs, again and again within one update."""

from __future__ import annotations

from megavideo.data.plan.step_plan import StepPlan

_MANY = 2.0


def visits_per_step(plan: StepPlan, packs_per_step: int) -> float:
    """Visits, within one step, of the samples that are seen most often."""
    return packs_per_step * plan.passes_per_cycle / plan.packs_per_cycle


def seen_again(plan: StepPlan, samples: int, packs_per_step: int, setting: str) -> str | None:
    """What a user should know where a step sees its samples twice or more; None where it does not.

    `samples` are those that are trained on, and `setting` is the one that holds `packs_per_step`.
    """
    visits = visits_per_step(plan, packs_per_step)
    if visits < _MANY:
        return None
    return (
        f"{samples} samples fill {packs_per_step / visits:.2g} packs, and a step takes {setting}={packs_per_step}: "
        f"each sample is seen {visits:.3g} times within one update. Remedy: take {setting}="
        f"{max(1, int(packs_per_step / visits))}, or more clips"
    )
