"""Points from finished runs: size and FLOPs by formula, tokens from the metrics, loss on held-out clips at the end.

The loss of validation is on fixed noise, and thus far less noisy than that of training.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megavideo.config.dump import read_config
from megavideo.config.schema.train import TrainRun
from megavideo.errors import DataError
from megavideo.observe.metrics import read_metrics
from megavideo.observe.rows import read_rows
from megavideo.observe.run_folder import RunFolder
from megavideo.observe.status import find_runs
from megavideo.planning.parameters import num_parameters
from megavideo.scaling.points import Points, group_budgets

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedRun:
    """What a run tells of itself. `measured_by` is all that two runs must share for their losses to be comparable."""

    root: Path
    params: int
    tokens: int
    flops: float
    loss: float
    learning_rate: float
    batch_tokens: float
    measured_by: tuple[Any, ...]


def read_runs(place: Path, weights: str, level: float | None) -> Points:
    """The points of the finished runs in a folder; a run that has not come to its end is named in the log and left out.

    Raises DataError where a run was not validated at its last step, kept no average that is asked for, has no FLOPs in
    its metrics or was measured otherwise than the first.
    """
    found = [run for root in find_runs([str(place)]) if (run := read_run(root, weights, level)) is not None]
    if not found:
        raise DataError(
            f"{place}: holds no finished run. Remedy: let its runs end; `megavideo status` tells how they stand"
        )
    for run in found[1:]:
        if run.measured_by != found[0].measured_by:
            raise DataError(
                f"{run.root}: its loss was measured on other clips or noise than that of {found[0].root}. Remedy: fit "
                "runs that share data, validation and diffusion"
            )
    flops = np.array([run.flops for run in found], float)
    return Points(
        str(place), "the FLOPs formula of megavideo, in metrics.jsonl", np.array([run.params for run in found], float),
        np.array([run.tokens for run in found], float), flops, group_budgets(flops),
        np.array([run.loss for run in found], float), np.array([run.learning_rate for run in found], float),
        np.array([run.batch_tokens for run in found], float),
    )  # fmt: skip


def read_run(root: Path, weights: str, level: float | None) -> FinishedRun | None:
    """One run, or None where it is not at its end. Raises as `read_runs`."""
    folder = RunFolder(root)
    config = read_config(TrainRun, folder.config)
    if config.stages:
        raise DataError(f"{root}: is a curriculum, and a point is a run of one stage. Remedy: fit runs without stages")
    rows = read_metrics(folder.metrics)
    step = rows[-1]["step"] if rows else 0
    if step < config.train.steps:
        _log.warning("%s: left out, as it stands at step %d of %d", root, step, config.train.steps)
        return None
    applied = [row for row in rows if not row.get("skipped")]
    if not applied or any("flops" not in row for row in applied):
        raise DataError(f"{root}: its metrics tell no FLOPs of a step. Remedy: train it again with this version")
    tokens = sum(int(row["tokens"]) for row in applied)
    return FinishedRun(
        root, num_parameters(config.model), tokens, float(sum(row["flops"] for row in applied)),
        _last_loss(folder, step, weights, level), config.optim.lr, tokens / len(applied), _measured_by(config),
    )  # fmt: skip


def _last_loss(folder: RunFolder, step: int, weights: str, level: float | None) -> float:
    rows = list(read_rows(folder.validation)) if folder.validation.is_file() else []
    if not rows or rows[-1]["step"] != step:
        seen = f"last validated at step {rows[-1]['step']}" if rows else "never validated"
        raise DataError(
            f"{folder.root}: was {seen}, and ended at step {step}. Remedy: set validation.every to a divisor of "
            "train.steps"
        )
    row, suffix = rows[-1], "_ema" if weights == "ema" else ""
    if level is None:
        value = row.get(f"loss{suffix}")
    else:
        levels, by_level = row.get("levels") or (), row.get(f"by_level{suffix}") or ()
        near = min(range(len(levels)), key=lambda place: abs(levels[place] - level), default=None)
        value = by_level[near] if near is not None and near < len(by_level) else None
    if not isinstance(value, int | float) or value <= 0:
        raise DataError(
            f"{folder.root}: has no finite loss by weights={weights} at its last validation. Remedy: take the other "
            "weights, or leave the run out of the folder"
        )
    return float(value)


def _measured_by(config: TrainRun) -> tuple[Any, ...]:
    validation = config.validation
    return (
        validation.uri or config.data.uri, validation.clips, validation.levels, config.diffusion,
        config.data.tokens_per_pack,
    )  # fmt: skip
