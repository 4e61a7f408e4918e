"""`megavideo plan`: from settings to a report that is ready for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megavideo.config.curriculum import Stage, stages_of
from megavideo.config.load import load
from megavideo.config.schema.plan import PlanRun
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError
from megavideo.planning.calibrate import Fit, Scored, Summary, calibrate, fitted_roofline, score, summary
from megavideo.planning.changes import Refused, Search, search, smallest_changes
from megavideo.planning.measured import PUBLISHED, read_rows
from megavideo.planning.report import stage_report
from megavideo.planning.stage_plan import constants_of, plan_stage

_OPEN = ("data.uri=data", "init_from=weights")  # where data and first weights are does not matter


@dataclass(frozen=True)
class PlanReport:
    """What was asked for: stages, with changes that would let them fit; or a search, a calibration, a validation."""

    stages: tuple[dict[str, Any], ...] = ()
    searches: tuple[dict[str, Any], ...] = ()
    fit: dict[str, Any] | None = None
    validation: dict[str, Any] | None = None

    @property
    def fits(self) -> bool:
        """Whether every stage fits."""
        return all(stage["fits"] for stage in self.stages)


def make_plan(plan: PlanRun) -> PlanReport:
    """The report. Raises ConfigError for settings that cannot be, DataError for a table that cannot be read."""
    if plan.calibrate is not None:
        return PlanReport(fit=_fit_report(calibrate(read_rows(Path(plan.calibrate)))))
    if plan.validate is not None:
        return PlanReport(validation=_validation(plan))
    stages = train_stages(plan)
    if plan.search:
        found = tuple(_search_report(stage, search(stage, plan), plan.show) for stage in stages)
        return PlanReport(searches=found)
    plans = tuple(plan_stage(stage, plan) for stage in stages)
    rows = tuple(
        stage_report(found, () if found.fits else smallest_changes(stage, plan))
        for stage, found in zip(stages, plans, strict=True)
    )
    return PlanReport(stages=rows)


def train_stages(plan: PlanRun) -> tuple[Stage, ...]:
    """The stages that are planned, held to the rules of training. Raises ConfigError as `megavideo train` does."""
    words = [f"run={plan.run}", f"curriculum={plan.curriculum}", *plan.words]
    if plan.stage is not None:
        words.append(f"stage={plan.stage}")
    said = [word.partition("=")[0] for word in plan.words]
    words += [word for word in _OPEN if word.partition("=")[0] not in said]
    try:
        return stages_of(load(TrainRun, "train", words))
    except ConfigError as error:
        if error.field in ("run", "curriculum", "stage"):
            raise
        remedy = f"{error.remedy}; a setting of the run is said here as words=['KEY=VALUE']"
        raise ConfigError(error.field, error.value, error.rule, remedy) from error


def _search_report(stage: Stage, found: Search, show: int) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "candidates": found.candidates,
        "fitting": len(found.ranked),
        "ranked": [asdict(change) for change in found.ranked[:show]],
        "refused": [asdict(refused) for refused in _most(found.refused)],
    }


def _most(refused: tuple[Refused, ...]) -> list[Refused]:
    return sorted(refused, key=lambda item: -item.candidates)


def _fit_report(found: Fit) -> dict[str, Any]:
    return {
        "constants": asdict(found.constants),
        "rows": [asdict(row) for row in found.rows],
        "left_out": [asdict(row) for row in found.left_out],
        "errors": asdict(summary([row.error for row in found.rows])),
        "errors_left_out": asdict(summary([row.error for row in found.left_out])) if found.left_out else None,
    }


def _validation(plan: PlanRun) -> dict[str, Any]:
    constants = constants_of(plan.speeds)
    rows = read_rows(Path(str(plan.validate)))
    scored = [score(row, constants) for row in rows]
    groups: dict[str, list[int]] = {"all": list(range(len(rows)))}
    for number, row in enumerate(rows):
        groups.setdefault(row.family, []).append(number)
    fitted = fitted_roofline(rows, read_rows(PUBLISHED))
    told = {
        group: {
            "model": asdict(_summary(scored, numbers)),
            "constant 43 % MFU": asdict(summary([scored[i].constant for i in numbers])),
            "half of roofline": asdict(summary([scored[i].roofline for i in numbers])),
            "fitted share of roofline": asdict(summary([fitted[i] for i in numbers])),
        }
        for group, numbers in groups.items()
    }
    return {"constants": asdict(constants), "rows": [asdict(row) for row in scored], "errors": told}


def _summary(scored: list[Scored], numbers: list[int]) -> Summary:
    return summary([scored[i].error for i in numbers])
