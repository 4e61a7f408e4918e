"""Cross-field rules of `megavideo plan`."""

from __future__ import annotations

from megavideo.config.rules.effect import refuse_set
from megavideo.config.schema.plan import PlanRun
from megavideo.errors import ConfigError

_OF_A_RUN = ("run", "stage", "words", "clip_tokens", "search")


def something_is_planned(cfg: PlanRun) -> None:
    """A run, or a table of measured steps; tables say by themselves what was run."""
    tables = [name for name in ("calibrate", "validate") if getattr(cfg, name) is not None]
    if len(tables) > 1:
        raise ConfigError("validate", cfg.validate, "goes not with calibrate", "calibrate first, then set speeds.*")
    if tables:
        refuse_set("", cfg, _OF_A_RUN, f"has no effect with {tables[0]}", "drop one of the two")
    elif cfg.run is None:
        raise ConfigError("run", None, "is required", "take a preset of `megavideo train`, as run=wan_14b")


def stage_belongs_to_a_curriculum(cfg: PlanRun) -> None:
    """Without a curriculum there are no stages."""
    if cfg.stage is not None and cfg.curriculum == "none":
        raise ConfigError("stage", cfg.stage, "has no effect without a curriculum", "add curriculum=sora, or drop it")


def few_are_shown_of_a_search(cfg: PlanRun) -> None:
    """Only a search is cut off."""
    if not cfg.search:
        refuse_set("", cfg, ("show",), "has no effect without search", "add --search, or drop it")


PLAN_RULES = (something_is_planned, stage_belongs_to_a_curriculum, few_are_shown_of_a_search)
