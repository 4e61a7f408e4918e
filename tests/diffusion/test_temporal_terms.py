"""Differences between latent frames of a pack, beside plain loops over its clips."""

from __future__ import annotations

import itertools

import pytest
import torch

from megavideo.diffusion.temporal_terms import NONE, difference_errors, following_tokens
from megavideo.types import Grid

GRIDS = (Grid(1, 2, 3), Grid(4, 3, 2), Grid(2, 1, 2), Grid(3, 2, 2))
PADDING = 5
WIDTH = 12
NUM_TOKENS = sum(grid.num_tokens for grid in GRIDS) + PADDING


def following() -> torch.Tensor:
    found, begin = [], 0
    for grid in GRIDS:
        found.append(following_tokens(grid, begin))
        begin += grid.num_tokens
    return torch.cat([*found, torch.full((PADDING,), NONE)])


def pack() -> tuple[torch.Tensor, torch.Tensor]:
    """Random errors, and who takes part: three of four tokens, and no padding."""
    generator = torch.Generator().manual_seed(0)
    taking_part = torch.rand(NUM_TOKENS, generator=generator) > 0.25
    taking_part[-PADDING:] = False
    return torch.randn(NUM_TOKENS, WIDTH, generator=generator), taking_part


def by_loops(moved: torch.Tensor, taking_part: torch.Tensor, order: int, frames: int) -> torch.Tensor:
    """The same, number by number: [N], each difference counted where its first frame is."""
    out, begin = torch.zeros(NUM_TOKENS), 0
    for grid in GRIDS:
        plane = grid.h * grid.w
        for place in range(plane):
            tokens = [begin + t * plane + place for t in range(grid.t)]
            line = [(token, moved[token].view(frames, -1)[f]) for token in tokens for f in range(frames)]
            for first in range(len(line) - order):
                window = line[first : first + order + 1]
                if all(taking_part[token] for token, _ in window):
                    values = [value for _, value in window]
                    change = values[1] - values[0] if order == 1 else values[2] - 2 * values[1] + values[0]
                    out[window[0][0]] += change.square().sum() / WIDTH
        begin += grid.num_tokens
    return out


@pytest.mark.parametrize(("order", "frames"), itertools.product((1, 2), (1, 2, 3)))
def test_differences_are_those_of_plain_loops(order: int, frames: int) -> None:
    moved, taking_part = pack()
    found = difference_errors(moved, taking_part, following(), slice(0, NUM_TOKENS), order=order, frames=frames)
    expected = by_loops(moved, taking_part, order, frames)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert (expected > 0).sum() > 5


@pytest.mark.parametrize("order", [1, 2])
def test_runs_of_a_pack_have_a_part_each(order: int) -> None:
    moved, taking_part = pack()
    edges = [0, 9, 20, NUM_TOKENS]
    runs = [
        difference_errors(moved, taking_part, following(), slice(a, b), order=order, frames=1)
        for a, b in itertools.pairwise(edges)
    ]
    whole = difference_errors(moved, taking_part, following(), slice(0, NUM_TOKENS), order=order, frames=1)
    assert torch.equal(torch.cat(runs), whole)


def test_a_constant_error_is_none_and_a_drift_has_no_second_difference() -> None:
    grid = Grid(5, 2, 2)
    follows, everyone = following_tokens(grid, 0), torch.ones(20, dtype=torch.bool)
    steady = torch.ones(20, WIDTH)
    drift = torch.arange(5.0).repeat_interleave(4)[:, None].expand(-1, WIDTH)
    for moved, first in ((steady, 0.0), (drift, 16.0)):
        one, two = (
            difference_errors(moved, everyone, follows, slice(0, 20), order=order, frames=1).sum() for order in (1, 2)
        )
        assert float(one) == pytest.approx(first) and float(two) == 0.0
