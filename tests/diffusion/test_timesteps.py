"""Noise levels: their distribution, shifts, and that they belong to the sample."""

from __future__ import annotations

import dataclasses
import math
import statistics
from bisect import bisect

import pytest
import torch

from megavideo.config.schema.diffusion import DiffusionConfig
from megavideo.diffusion.randomness import SampleKey
from megavideo.diffusion.timesteps import apply_shift, draw_level, range_share, size_shift, undo_shift
from megavideo.types import Grid

GRID = Grid(3, 4, 4)
UNIFORM = DiffusionConfig(timesteps="uniform", logit_mean=None, logit_std=None)
NUM_DRAWS = 3000


def draws(config: DiffusionConfig, grid: Grid = GRID) -> list[float]:
    return [draw_level(config, SampleKey(0, f"s{i % 50}", i // 50), grid) for i in range(NUM_DRAWS)]


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 1.5), (1.0, 0.4)])
def test_logit_normal_moments(mean: float, std: float) -> None:
    levels = draws(DiffusionConfig(logit_mean=mean, logit_std=std))
    assert all(0.0 < level < 1.0 for level in levels)
    logits = [math.log(level / (1.0 - level)) for level in levels]
    assert statistics.fmean(logits) == pytest.approx(mean, abs=4 * std / NUM_DRAWS**0.5)
    assert statistics.stdev(logits) == pytest.approx(std, rel=4 / (2 * NUM_DRAWS) ** 0.5)


def test_uniform() -> None:
    levels = draws(UNIFORM)
    assert min(levels) >= 0.0 and max(levels) < 1.0
    counts = [sum(int(level * 10) == tenth for level in levels) for tenth in range(10)]
    assert all(abs(count - NUM_DRAWS / 10) < 4 * (NUM_DRAWS * 0.09) ** 0.5 for count in counts)


def test_shift_moves_towards_noise_and_keeps_the_ends_and_the_order() -> None:
    levels = [i / 100 for i in range(101)]
    for shift in (1.5, 3.0, 12.0):
        shifted = [apply_shift(level, shift) for level in levels]
        assert shifted[0] == 0.0 and shifted[-1] == pytest.approx(1.0)
        assert shifted == sorted(shifted) and len(set(shifted)) == 101
        assert all(after > before for before, after in zip(levels[1:-1], shifted[1:-1], strict=True))
        assert all(apply_shift(s, 1 / shift) == pytest.approx(x) for x, s in zip(levels, shifted, strict=True))
    assert [apply_shift(level, 1.0) for level in levels] == levels
    assert apply_shift(0.5, 3.0) == pytest.approx(0.75)
    growing = [apply_shift(0.3, shift) for shift in (1.0, 2.0, 3.0, 4.0)]
    assert growing == sorted(growing) and len(set(growing)) == 4


def test_size_shift() -> None:
    assert size_shift(Grid(1, 16, 16)) == pytest.approx(1.0)
    assert size_shift(Grid(1, 64, 64)) == pytest.approx(3.0)
    assert size_shift(Grid(1, 34, 64)) == pytest.approx(2.0)  # halfway between 256 and 4096 tokens
    assert size_shift(Grid(9, 64, 64)) == pytest.approx(9.0)
    assert size_shift(Grid(4, 2, 2)) == pytest.approx(2.0)  # never below 1 in space


def test_shifts_act_on_the_drawn_level() -> None:
    key = SampleKey(3, "a", 1)
    plain = draw_level(UNIFORM, key, GRID)
    assert draw_level(dataclasses.replace(UNIFORM, shift=3.0), key, GRID) == apply_shift(plain, 3.0)
    by_size = dataclasses.replace(UNIFORM, shift_by_size=True)
    for grid in (GRID, Grid(1, 64, 64)):
        assert draw_level(by_size, key, grid) == apply_shift(plain, size_shift(grid))


@pytest.mark.parametrize(("boundary", "unshifted"), [(0.9, 0.6429), (0.875, 0.5833)])
def test_a_boundary_of_shifted_levels_is_another_one_before_the_shift(boundary: float, unshifted: float) -> None:
    """The boundaries of Wan 2.2, at its shift of 5."""
    assert undo_shift(boundary, 5.0) == pytest.approx(unshifted, abs=5e-5)
    assert apply_shift(undo_shift(boundary, 5.0), 5.0) == pytest.approx(boundary)


BY_CONTENT = DiffusionConfig(shift_by_size=True, shift_by_content=0.7)
PLAIN = [
    UNIFORM,
    dataclasses.replace(UNIFORM, shift=5.0),
    DiffusionConfig(logit_mean=0.4, logit_std=1.3, shift=5.0),
    BY_CONTENT,
]


@pytest.mark.parametrize("plain", PLAIN)
@pytest.mark.parametrize("ends", [(0.875, 1.0), (0.0, 0.875), (0.3, 0.6)])
def test_a_range_is_drawn_from_as_what_falls_in_it(plain: DiffusionConfig, ends: tuple[float, float]) -> None:
    """The restricted draws against those of the unrestricted ones in the range, by Kolmogorov and Smirnov."""
    low, high = ends
    config, gradient = dataclasses.replace(plain, sigma_range=ends), 0.9
    keys = [SampleKey(0, f"s{i}", 0) for i in range(NUM_DRAWS)]
    unrestricted = [draw_level(plain, key, GRID, gradient) for key in keys]
    inside = sorted(level for level in unrestricted if low <= level <= high)
    restricted = sorted(draw_level(config, key, GRID, gradient) for key in keys)
    assert low <= restricted[0] and restricted[-1] <= high
    assert restricted == sorted(draw_level(config, key, GRID, gradient) for key in keys)
    points = [low + (high - low) * i / 50 for i in range(51)]
    gaps = [abs(bisect(inside, x) / len(inside) - bisect(restricted, x) / NUM_DRAWS) for x in points]
    assert max(gaps) < 1.95 * (1 / len(inside) + 1 / NUM_DRAWS) ** 0.5  # one in a thousand is further apart
    if not plain.shift_by_content:
        share = range_share(config, GRID)
        assert len(inside) / NUM_DRAWS == pytest.approx(share, abs=4 * (share * (1 - share) / NUM_DRAWS) ** 0.5)


def test_the_shares_of_a_pair_are_the_whole() -> None:
    ends = [(0.0, 0.875), (0.875, 1.0)]
    shares = [range_share(DiffusionConfig(shift=5.0, sigma_range=one), GRID) for one in ends]
    assert sum(shares) == pytest.approx(1.0)
    assert shares[1] == pytest.approx(1 - statistics.NormalDist().cdf(math.log(0.5833333 / 0.4166667)), abs=1e-6)
    uniform = dataclasses.replace(UNIFORM, shift=5.0, sigma_range=ends[1])
    assert range_share(uniform, GRID) == pytest.approx(1 - 0.5833333)


def test_ends_that_the_draw_hardly_reaches_are_kept_to() -> None:
    config = DiffusionConfig(logit_mean=-3.0, logit_std=0.2, sigma_range=(0.999, 1.0))
    assert all(0.999 <= draw_level(config, SampleKey(0, str(i), 0), GRID) <= 1.0 for i in range(20))


def test_draws_belong_to_seed_sample_visit_and_purpose() -> None:
    key = SampleKey(0, "a", 0)
    same = SampleKey(0, "a", 0)
    assert key.uniform("x") == same.uniform("x") == key.uniform("x")
    assert torch.equal(key.normal("x", (4, 2)), same.normal("x", (4, 2)))
    others = [SampleKey(1, "a", 0), SampleKey(0, "b", 0), SampleKey(0, "a", 1)]
    assert len({k.uniform("x") for k in (key, *others)} | {key.uniform("y")}) == 5
    torch.manual_seed(5)
    assert key.uniform("x") == same.uniform("x")
