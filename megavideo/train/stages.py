"""Which stage of a curriculum comes next, from where the run folder stands."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from megavideo.config.curriculum import Stage
from megavideo.config.schema.exit import ExitConfig
from megavideo.errors import ConfigError
from megavideo.train.position import Position


def next_stage(stages: Sequence[Stage], position: Position | None, step: int) -> tuple[Stage, Position] | None:
    """The stage to train and its position, for a run of `step` steps; None where nothing is left of `stages`.

    `position` is that of the newest checkpoint, None where there is none. `stages` are all, or the one that was asked
    for. Raises ConfigError where the one that was asked for does not follow from where the run stands.
    """
    if position is None:
        if stages[0].number > 1:
            _warn_of_gap(stages[0], "a run that has not begun")
        return stages[0], Position(stages[0].name, stages[0].number)
    if bool(position.number) != bool(stages[0].number):
        kind = "under a curriculum" if position.number else "without a curriculum"
        raise ConfigError(
            "curriculum",
            None if position.number else stages[0].name,
            f"this run was started {kind}",
            "go on as it was started, or name= another run with init_from= this one",
        )
    if position.number == 0:
        # one that goes on after its end, to more steps, is not finished any more
        return None if _is_over(stages[0], position, step) else (stages[0], replace(position, finished=None))
    if stages[0].number > position.number and position.finished is None:
        raise ConfigError(
            "stage",
            stages[0].name,
            f"the run is in stage {position.number}, {position.stage}, which is not finished",
            f"finish it with stage={position.number}; exit.samples and exit.tokens end a stage early",
        )
    if stages[-1].number < position.number:
        raise ConfigError(
            "stage",
            stages[-1].name,
            f"the run has gone on to stage {position.number}, {position.stage}",
            "name= another run, with init_from= a checkpoint of the stage before",
        )
    for stage in stages:
        if stage.number == position.number and position.finished is None:
            return stage, position
        if stage.number > position.number:
            if stage.number > position.number + 1:
                _warn_of_gap(stage, f"stage {position.number}, {position.stage}")
            return stage, Position(stage.name, stage.number, first_step=step, first_visit=position.next_visit)
    return None


def reached_exit(rule: ExitConfig, num_steps: int, position: Position, step: int) -> str | None:
    """What ends the stage of `num_steps` after `step` steps of the run: the name of the rule, or None."""
    if step >= position.first_step + num_steps:
        return "steps"
    if rule.samples is not None and position.samples >= rule.samples:
        return "samples"
    if rule.tokens is not None and position.tokens >= rule.tokens:
        return "tokens"
    if rule.plateau is not None and position.stale >= rule.plateau:
        return "plateau"
    return None


def _is_over(stage: Stage, position: Position, step: int) -> bool:
    """A run without stages that ended by its number of steps goes on where that was raised since."""
    if step >= stage.config.train.steps:
        return True
    return position.finished not in (None, "steps")


def _warn_of_gap(stage: Stage, stand: str) -> None:
    logging.getLogger(__name__).warning(
        "stage %d, %s, begins from %s: the stages between were not trained", stage.number, stage.name, stand
    )
