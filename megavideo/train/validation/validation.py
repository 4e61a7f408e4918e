"""The loss on clips that are not trained on: by noise level, resolution and duration, by weights and their average."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from megavideo.config.schema.train import TrainRun
from megavideo.device.choice import copies_for
from megavideo.diffusion.objective import build_objective
from megavideo.parallel.engines.average import averaged_weights, has_average
from megavideo.parallel.engines.engine import Engine
from megavideo.parallel.engines.predict import predict
from megavideo.train.health.agree import in_agreement
from megavideo.train.packs.loading import Loader
from megavideo.train.validation.held_out_clips import HeldOutClips
from megavideo.train.validation.held_out_packs import HeldOutPacks, middle_levels, noised_at

# forward and backward of a training step, in forward passes; recomputation adds up to one more
_PASSES_OF_TRAINING = 3


@dataclass(frozen=True)
class ValidationCell:
    """Mean loss at one noise level of the `count` clips of one size class (see `SizeClass`), by weights and average."""

    level: float
    area: int
    frames: int
    loss: float
    loss_ema: float | None
    count: int


@dataclass(frozen=True)
class ValidationReport:
    """Mean squared errors of the prediction over all tokens, without the weights of `diffusion.loss_weight`.

    `levels` [L] run from little noise to much (0 to 1), with the loss at each in `by_level` [L]. What ends in `_ema` is
    the average's, None where the run keeps none.
    """

    loss: float
    loss_ema: float | None
    levels: tuple[float, ...]
    by_level: tuple[float, ...]
    by_level_ema: tuple[float, ...] | None
    cells: tuple[ValidationCell, ...]
    seconds: float

    def row(self) -> dict[str, Any]:
        """As a row of `validation.jsonl`."""
        return asdict(self)


class Validator:
    """Measures the loss on held-out clips, the same on every process. Raises DataError where none fits a pack."""

    def __init__(self, config: TrainRun, engine: Engine, held_out: HeldOutClips, device: torch.device) -> None:
        self._engine = engine
        self._device = device
        self._objective = build_objective(config.diffusion)
        self._levels = middle_levels(config.validation.levels, config.diffusion.sigma_range)
        self._loader = Loader(copies_for(device), engine.dtype)
        self._packs = HeldOutPacks(config, held_out, engine.plan.mesh)
        logging.getLogger(__name__).info(
            "validation: %d clips at %d noise levels take as long as about %.1f training steps",
            self._packs.num_clips, len(self._levels), self.cost_steps,
        )  # fmt: skip

    @property
    def cost_steps(self) -> float:
        """What a measurement costs, in training steps, counted in forward passes."""
        passes = len(self._levels) * self._packs.rounds * (2 if has_average(self._engine) else 1)
        return passes / (_PASSES_OF_TRAINING * self._engine.plan.micro_steps)

    def measure(self) -> ValidationReport:
        """The loss now; a collective call of all processes, between two updates, which leaves no trace in training.

        Raises DataError on every rank where any of them cannot read a clip.
        """
        begin = time.monotonic()
        shape = (len(self._levels), len(self._packs.classes) + 1)
        sums = torch.zeros(2, *shape, dtype=torch.float64, device=self._device)
        self._add_errors(sums[0])
        if with_average := has_average(self._engine):
            with averaged_weights(self._engine):
                self._add_errors(sums[1])
        dist.all_reduce(sums)
        errors = sums[:, :, :-1].cpu() / self._engine.plan.mesh.loss_copies
        return self._report(errors[0], errors[1] if with_average else None, time.monotonic() - begin)

    def _add_errors(self, sums: torch.Tensor) -> None:
        """Add this rank's errors to `sums` [levels, classes + 1], whose last class is of tokens that do not count."""
        mesh = self._engine.plan.mesh
        for pack in in_agreement(self._packs.mine(), self._device):
            own = mesh.own_tokens(pack.classes.shape[0])
            classes = pack.classes[own].to(self._device)
            noised = (noised_at(pack, self._objective, self._levels, number) for number in range(len(self._levels)))
            for number, batch in enumerate(self._loader.on_device(noised)):
                prediction = predict(self._engine, batch.pack)
                if prediction is not None:  # else a later stage's rank has it
                    error = (prediction.float() - batch.target[own]).square().mean(dim=1)
                    sums[number].index_add_(0, classes, error.double())

    def _report(self, errors: torch.Tensor, averaged: torch.Tensor | None, seconds: float) -> ValidationReport:
        """From sums of errors [levels, classes], by weights and by their average."""
        counts = self._packs.counts()
        tokens = torch.tensor([count for _, count in counts], dtype=torch.float64)
        cells = tuple(
            ValidationCell(
                level, size.area, size.frames, float(errors[i, j] / tokens[j]),
                None if averaged is None else float(averaged[i, j] / tokens[j]), counts[j][0],
            )
            for i, level in enumerate(self._levels)
            for j, size in enumerate(self._packs.classes)
        )  # fmt: skip
        by_level = errors.sum(1) / tokens.sum()
        by_level_ema = None if averaged is None else averaged.sum(1) / tokens.sum()
        return ValidationReport(
            loss=float(by_level.mean()),
            loss_ema=None if by_level_ema is None else float(by_level_ema.mean()),
            levels=self._levels,
            by_level=tuple(by_level.tolist()),
            by_level_ema=None if by_level_ema is None else tuple(by_level_ema.tolist()),
            cells=cells,
            seconds=seconds,
        )
