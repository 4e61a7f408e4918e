"""Cross-field rules of when a stage ends."""

from __future__ import annotations

from megavideo.config.rules.effect import refuse_set
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError


def plateau_needs_validation(cfg: TrainRun) -> None:
    """Whether the loss still falls is seen on held-out clips alone: the training loss moves with the noise levels."""
    if cfg.exit.plateau is not None and cfg.validation.every is None:
        rule = "counts validations, and validation.every is null"
        raise ConfigError("exit.plateau", cfg.exit.plateau, rule, "set validation.every=500, or exit.plateau=null")


def share_belongs_to_plateau(cfg: TrainRun) -> None:
    """How much the loss has to fall counts only where its plateau ends a stage."""
    if cfg.exit.plateau is None:
        rule, remedy = "has no effect with exit.plateau=null", "add exit.plateau=5, or drop it"
        refuse_set("exit", cfg.exit, ("plateau_share",), rule, remedy)


STAGE_RULES = (plateau_needs_validation, share_belongs_to_plateau)
