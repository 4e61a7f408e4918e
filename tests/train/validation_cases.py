"""What one rank does and tells in `test_validation.py`: training steps with measurements in between, and without."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from megavideo.config.schema.train import TrainRun
from megavideo.config.schema.validation import ValidationConfig
from megavideo.data.plan.packing import PackLimits
from megavideo.data.stream.batch import assemble
from megavideo.data.stream.shards import LatentSample
from megavideo.diffusion.conditions import draw_mask
from megavideo.diffusion.randomness import SampleKey
from megavideo.errors import DataError
from megavideo.model.dit import DiT
from megavideo.parallel.engines.engine import Engine
from megavideo.parallel.processes.distributed import Launch
from megavideo.parity.spec import ParitySpec
from megavideo.testing.parity_training import parity_training
from megavideo.testing.plain_model import plain_models
from megavideo.train.validation.held_out_clips import HeldOutClip, HeldOutClips
from megavideo.train.validation.validation import ValidationReport, Validator
from megavideo.types import Grid, PackSegment

LEVELS = 3
# three packs of 96 tokens, so that two ranks have an unequal number; one clip fits no pack
GRIDS = (
    Grid(3, 8, 10), Grid(1, 12, 8), Grid(2, 6, 8), Grid(4, 4, 4), Grid(1, 8, 8), Grid(2, 8, 4), Grid(9, 8, 8),
    Grid(3, 8, 8), Grid(1, 4, 4),
)  # fmt: skip


def held_out() -> tuple[HeldOutClip, ...]:
    """Clips that no pack of the training has."""
    return tuple(HeldOutClip(i, f"held-{i}", grid, 1 + i % 4, pixels(grid)) for i, grid in enumerate(GRIDS))


def pixels(latent: Grid) -> tuple[int, int, int]:
    """Frames, height and width of a latent's clip."""
    return 1 + 4 * (latent.t - 1), 8 * latent.h, 8 * latent.w


def read(config: TrainRun, index: int) -> LatentSample:
    """A clip of noise."""
    key, sample = SampleKey(7, f"held-{index}", 0), held_out()[index]
    latent = key.normal("latent", (config.model.latent_channels, *dataclasses.astuple(sample.latent)))
    return LatentSample(latent, key.normal("text", (sample.text_tokens, config.model.text_dim)), 8.0)


def run_layouts(launch: Launch, spec: ParitySpec, layouts: Sequence[str]) -> dict[str, Any]:
    """An account of each layout."""
    return {layout: _account(launch, spec, layout) for layout in layouts}


def _account(launch: Launch, spec: ParitySpec, layout: str) -> dict[str, Any]:
    plain = _train(launch, spec, layout, lambda engine, step: None)
    reports: list[ValidationReport] = []
    told: dict[str, Any] = {}

    def measure(engine: Engine, step: int) -> None:
        validator = _validator(spec, layout, engine, launch, partial(read, _config(spec, layout)))
        reports.append(validator.measure())
        if step == 0:
            told["error"] = _failing(spec, layout, engine, launch)
            return
        told["same_again"] = validator.measure().cells == reports[-1].cells
        told["cost_steps"] = validator.cost_steps
        if layout == "zero0":
            told["reference"] = _reference(_config(spec, layout), engine)

    mixed = _train(launch, spec, layout, measure)
    return {"plain": plain, "mixed": mixed, "rows": [report.row() for report in reports], **told}


def _train(launch: Launch, spec: ParitySpec, layout: str, between: Callable[[Engine, int], None]) -> list[float]:
    """Losses of a training with `between` called after each step."""
    losses = []
    with parity_training(launch, spec, layout) as training:
        for step in range(spec.steps):
            losses.append(training.step(step)[0].loss)
            between(training.engine, step)
    return losses


def _config(spec: ParitySpec, layout: str) -> TrainRun:
    return dataclasses.replace(spec.as_training(layout), validation=ValidationConfig(every=1, levels=LEVELS))


def _validator(
    spec: ParitySpec, layout: str, engine: Engine, launch: Launch, reader: Callable[[int], LatentSample]
) -> Validator:
    return Validator(_config(spec, layout), engine, HeldOutClips(held_out(), reader), launch.device)


def _failing(spec: ParitySpec, layout: str, engine: Engine, launch: Launch) -> str:
    """The message with which a measurement ends where the last rank cannot read a clip."""

    def cannot_read(index: int) -> LatentSample:
        if launch.rank == launch.world_size - 1:
            raise DataError("the shard is gone")
        return read(_config(spec, layout), index)

    try:
        _validator(spec, layout, engine, launch, cannot_read).measure()
    except DataError as error:
        return str(error)
    return ""


def _reference(config: TrainRun, engine: Engine) -> dict[str, Any]:
    """Errors and tokens of each clip alone in its pack at each level, by a plain model of the weights and averages."""
    return {
        kind: [[_error(config, model, sample, number) for sample in held_out()] for number in range(LEVELS)]
        for kind, model in plain_models(engine, config.model)
    }


@torch.no_grad()
def _error(config: TrainRun, model: DiT, sample: HeldOutClip, number: int) -> tuple[float, int]:
    """Sum of the tokens' mean squared errors, and their number; written out for flow matching."""
    level = (2 * number + 1) / (2 * LEVELS)
    grid = Grid(sample.latent.t, sample.latent.h // 2, sample.latent.w // 2)
    segment = PackSegment(sample.index, sample.sample_id, 0, grid, sample.text_tokens)
    latent = read(config, sample.index)
    pack = assemble([segment], [latent], config.model.patch, PackLimits(grid.num_tokens, 8, 1))
    key = SampleKey(0, sample.sample_id, 0)
    noise = key.normal(f"validation/{number}", tuple(pack.tokens.shape))
    given = draw_mask(config.diffusion.conditions, key, grid)
    tokens = torch.where(given[:, None], pack.tokens, (1 - level) * pack.tokens + level * noise)
    timestep = torch.full_like(pack.timestep, 1000 * level)
    batch = dataclasses.replace(pack, tokens=tokens, timestep=timestep, condition_mask=given)
    error = (model(batch) - (noise - pack.tokens)).square().mean(1)[~given]
    return float(error.double().sum()), len(error)
