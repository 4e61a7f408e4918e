"""Noise levels: where on the way from data (0) to noise (1) a sample is trained."""

from __future__ import annotations

import math

from megavideo.config.schema.diffusion import DiffusionConfig
from megavideo.diffusion.content import content_shift
from megavideo.diffusion.randomness import SampleKey
from megavideo.types import Grid

# Open-Sora 2.0 (Peng et al. 2025): linear in the spatial tokens from (256, 1) to (4096, 3), times sqrt(latent frames)
_SHIFT_POINTS = ((256, 1.0), (4096, 3.0))


def size_shift(grid: Grid) -> float:
    """Timestep shift of a sample by its tokens per frame and its latent frames (Open-Sora 2.0)."""
    (x0, y0), (x1, y1) = _SHIFT_POINTS
    slope = (y1 - y0) / (x1 - x0)
    return max(1.0, y0 + slope * (grid.h * grid.w - x0)) * math.sqrt(grid.t)


def apply_shift(sigma: float, shift: float) -> float:
    """shift * sigma / (1 + (shift - 1) * sigma) (Esser et al. 2024): a shift over 1 moves levels towards noise."""
    return shift * sigma / (1.0 + (shift - 1.0) * sigma)


def run_shift(config: DiffusionConfig, grid: Grid) -> float | None:
    """The shift that a run gives samples of one token grid, in training and in sampling; None for none."""
    return size_shift(grid) if config.shift_by_size else config.shift


def draw_level(config: DiffusionConfig, key: SampleKey, grid: Grid, gradient: float | None = None) -> float:
    """The noise level in (0, 1) of one visit of a sample.

    `gradient` is that of `content.latent_gradient`; None leaves what `shift_by_content` does out.
    """
    if config.timesteps == "uniform":
        level = key.uniform("timestep")
    else:
        mean, std = config.logit_mean or 0.0, config.logit_std or 1.0
        level = 1.0 / (1.0 + math.exp(-(mean + std * float(key.normal("timestep", ())))))
    shift = run_shift(config, grid)
    if config.shift_by_content and gradient is not None:
        shift = (1.0 if shift is None else shift) * content_shift(config.shift_by_content, gradient)
    return apply_shift(level, shift) if shift is not None else level
