"""Noise that follows what goes on in a clip: a function of the sample alone, and of nothing where it is off."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from megavideo.config.schema.diffusion import DiffusionConfig
from megavideo.diffusion.content import (
    LEAST_FACTOR,
    MOST_FACTOR,
    REFERENCE_GRADIENT,
    content_shift,
    latent_gradient,
)
from megavideo.diffusion.randomness import SampleKey
from megavideo.diffusion.timesteps import apply_shift, draw_level, run_shift, size_shift
from megavideo.types import Grid

GRID = Grid(4, 5, 6)
KEY = SampleKey(0, "a", 0)


def noise(grid: Grid = GRID) -> torch.Tensor:
    return SampleKey(1, "latent", 0).normal("x", (grid.num_tokens, 16))


def test_of_white_noise_the_gradient_is_the_root_of_two() -> None:
    assert latent_gradient(noise(Grid(8, 16, 16)), Grid(8, 16, 16)) == pytest.approx(math.sqrt(2), rel=0.01)
    assert latent_gradient(3.0 * noise(), GRID) == pytest.approx(3.0 * latent_gradient(noise(), GRID))


def test_space_and_time_count_the_same() -> None:
    """A clip of still noise changes in space only, one of flashing frames in time only."""
    still = noise(Grid(1, 5, 6)).view(1, 30, 16).expand(4, -1, -1).reshape(-1, 16)
    flashing = noise(Grid(4, 1, 1)).view(4, 1, 16).expand(-1, 30, -1).reshape(-1, 16)
    in_space = latent_gradient(still[:30], Grid(1, 5, 6))
    assert latent_gradient(still, GRID) == pytest.approx(in_space / math.sqrt(2))
    steps = flashing.view(4, 30, 16)[:, 0].double().diff(dim=0).square().mean()
    assert latent_gradient(flashing, GRID) == pytest.approx(math.sqrt(float(steps) / 2))
    assert latent_gradient(torch.ones(GRID.num_tokens, 16), GRID) == 0.0


def test_what_has_no_neighbours_is_left_where_it_is() -> None:
    assert content_shift(1.5, latent_gradient(noise(Grid(1, 1, 1)), Grid(1, 1, 1))) == 1.0


def test_the_factor_grows_with_the_gradient_and_is_bounded() -> None:
    factors = [content_shift(0.7, gradient) for gradient in (0.3, 0.5, REFERENCE_GRADIENT, 0.8, 1.4)]
    assert factors == sorted(factors) and len(set(factors)) == 5
    assert factors[2] == 1.0
    assert content_shift(2.0, 0.0) == LEAST_FACTOR
    assert content_shift(2.0, 1e9) == content_shift(2.0, math.inf) == MOST_FACTOR
    assert content_shift(2.0, math.nan) == 1.0
    assert content_shift(0.0, 7.0) == 1.0


@pytest.mark.parametrize("settings", [{}, {"shift": 3.0}, {"shift_by_size": True}], ids=["plain", "shift", "by_size"])
def test_it_multiplies_the_shift_that_there_is(settings: dict[str, float | bool]) -> None:
    config = DiffusionConfig(shift_by_content=0.8, **settings)  # type: ignore[arg-type]
    plain = dataclasses.replace(config, shift=None, shift_by_size=False, shift_by_content=0.0)
    shift = run_shift(config, GRID) or 1.0
    assert shift == (size_shift(GRID) if config.shift_by_size else config.shift or 1.0)
    level = draw_level(plain, KEY, GRID)
    for gradient in (0.5, 1.3):
        assert draw_level(config, KEY, GRID, gradient) == apply_shift(level, shift * content_shift(0.8, gradient))
    levels = [draw_level(config, KEY, GRID, gradient) for gradient in (0.3, 0.5, REFERENCE_GRADIENT, 1.6)]
    assert levels == sorted(levels) and len(set(levels)) == 4  # more goes on, more noise
    assert levels[2] == pytest.approx(draw_level(dataclasses.replace(config, shift_by_content=0.0), KEY, GRID))


def test_at_zero_it_is_the_plain_shift() -> None:
    config = DiffusionConfig(shift=3.0)
    assert draw_level(config, KEY, GRID, 0.1) == draw_level(config, KEY, GRID)
