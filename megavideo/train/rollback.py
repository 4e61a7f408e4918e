"""Going back after steps in a row that fail: what a run says of it, and what to do where there is no way back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megavideo.config.schema.guard import GuardConfig
from megavideo.config.schema.train import TrainRun
from megavideo.errors import NumericsError
from megavideo.train.position import Position
from megavideo.train.record import BAD_SAMPLES_FILE, FAULTS_FILE


def skipped_steps(folder: Path, bad: Sequence[int]) -> str:
    """That these steps of the run in `folder`, counted from 0, were skipped, and where it says more of them."""
    what = (
        f"{len(bad)} steps in a row, the last of them {bad[-1] + 1}, were" if len(bad) > 1 else f"step {bad[0] + 1} was"
    )
    return f"{what} skipped; see {folder / FAULTS_FILE} for the samples"


def too_often(folder: Path, bad: Sequence[int], rollbacks: int, guard: GuardConfig) -> NumericsError:
    """The run may not go back once more."""
    return NumericsError(
        f"{skipped_steps(folder, bad)}. The run went back {rollbacks} times already, as guard.max_rollbacks allows. "
        f"Remedy: {_another_course(folder, guard)}"
    )


def nothing_before(folder: Path, bad: Sequence[int], newest: int, config: TrainRun) -> NumericsError:
    """There is no checkpoint from before these steps; `newest` is the step of the newest one, 0 where there is none."""
    every, keep_last = config.checkpoint.every, config.checkpoint.keep_last
    if newest:
        why = f": the newest is of step {newest}, and checkpoint.keep_last={keep_last} keeps none that is old enough"
        needed = newest // every - bad[0] // every + 1
        more = f"; checkpoint.keep_last={needed} would have kept one. The same command goes on from step {newest}"
    elif bad[0]:
        why = f": the first is saved after step {every}, as checkpoint.every says"
        more = f"; with checkpoint.every={bad[0]} there would be one"
    else:
        why, more = ", since the run began with them", ""
    return NumericsError(
        f"{skipped_steps(folder, bad)}, and there is no whole checkpoint from before them to go back to{why}. "
        f"Remedy: {_another_course(folder, config.guard)}{more}"
    )


def in_stage_before(folder: Path, bad: Sequence[int], step: int, found: Position) -> NumericsError:
    """The newest checkpoint from before these steps, of `step`, is from the middle of the stage that `found` tells.

    Training on from there as this stage would leave out what that one has left.
    """
    return NumericsError(
        f"{skipped_steps(folder, bad)}, and the newest checkpoint from before them, of step {step}, is from the middle "
        f"of stage {found.number}, {found.stage}. Remedy: keep checkpoint.keep_stage_ends on, {_left_out(folder)}, and "
        "start again: the same command trains the rest of that stage first"
    )


def _another_course(folder: Path, guard: GuardConfig) -> str:
    spikes = "" if guard.spike_factor is None else f"raise guard.spike_factor={guard.spike_factor:g}, "
    return f"lower optim.lr, {spikes}or {_left_out(folder)}"


def _left_out(folder: Path) -> str:
    """How the samples are left out; those whose own error was not finite are listed by the run."""
    listed = folder / BAD_SAMPLES_FILE
    return f"add guard.exclude={listed}" if listed.is_file() else "name those samples in a file for guard.exclude"
