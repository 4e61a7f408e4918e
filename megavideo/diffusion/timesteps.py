"""Noise levels: where on the way from data (0) to noise (1) a sample is trained."""

from __future__ import annotations

import math
from statistics import NormalDist

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


def undo_shift(sigma: float, shift: float) -> float:
    """The level that `apply_shift` makes `sigma`: sigma / (shift - (shift - 1) * sigma)."""
    return sigma / (shift - (shift - 1.0) * sigma)


def draw_level(config: DiffusionConfig, key: SampleKey, grid: Grid, gradient: float | None = None) -> float:
    """The noise level in (0, 1), after all shifts, of one visit of a sample; within `sigma_range` where there is one.

    There the draw keeps its form: it is renormalised, by its inverse distribution function between the two ends.
    `gradient` is that of `content.latent_gradient`; None leaves what `shift_by_content` does out.
    """
    shift = _shift(config, grid, gradient)
    if config.sigma_range is not None:
        low, high = config.sigma_range
        below, above = (_share_below(config, undo_shift(sigma, shift)) for sigma in (low, high))
        level = _level_at(config, below + key.uniform("timestep") * (above - below))
        return min(max(apply_shift(level, shift), low), high)
    if config.timesteps == "uniform":
        level = key.uniform("timestep")
    else:
        mean, std = _logit(config)
        level = _sigmoid(mean + std * float(key.normal("timestep", ())))
    return apply_shift(level, shift)


def range_share(config: DiffusionConfig, grid: Grid) -> float:
    """The share of the unrestricted draw that falls in `sigma_range`, for samples of one token grid.

    What `shift_by_content` does is left out.
    """
    assert config.sigma_range is not None
    shift = _shift(config, grid, None)
    below, above = (_share_below(config, undo_shift(sigma, shift)) for sigma in config.sigma_range)
    return above - below


def _shift(config: DiffusionConfig, grid: Grid, gradient: float | None) -> float:
    """All shifts as one; 1 moves nothing."""
    shift = run_shift(config, grid) or 1.0
    if config.shift_by_content and gradient is not None:
        shift *= content_shift(config.shift_by_content, gradient)
    return shift


def _logit(config: DiffusionConfig) -> tuple[float, float]:
    return config.logit_mean or 0.0, config.logit_std or 1.0


def _share_below(config: DiffusionConfig, level: float) -> float:
    """Distribution function of the draw before any shift."""
    if config.timesteps == "uniform" or not 0.0 < level < 1.0:
        return level
    return NormalDist(*_logit(config)).cdf(math.log(level / (1.0 - level)))


def _level_at(config: DiffusionConfig, share: float) -> float:
    """The inverse of `_share_below`."""
    if config.timesteps == "uniform" or not 0.0 < share < 1.0:
        return share
    return _sigmoid(NormalDist(*_logit(config)).inv_cdf(share))


def _sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit))
