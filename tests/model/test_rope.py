"""Rotary positions against their formula and against diffusers' Wan."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

from megavideo.config.rules.model import rotary_split
from megavideo.model.pack_index import PackFacts, PackIndex
from megavideo.model.rope import axis_widths, rotary_table, rotate
from megavideo.types import Grid
from tests.model.packs import make_pack


def positions(grid: Grid) -> torch.Tensor:
    """(t, y, x) of every token of a grid, x fastest."""
    return torch.tensor(list(itertools.product(range(grid.t), range(grid.h), range(grid.w))))


@pytest.mark.parametrize("head_dim", [6, 16, 24, 64, 96, 128])
def test_widths_fill_the_head_in_pairs(head_dim: int) -> None:
    widths = axis_widths(head_dim)
    assert sum(widths) == head_dim
    assert all(width >= 2 and width % 2 == 0 for width in widths)
    assert widths == rotary_split(head_dim)


@pytest.mark.parametrize("head_dim", [16, 24, 128])
def test_table_follows_the_formula(head_dim: int) -> None:
    position = torch.tensor([[0, 0, 0], [1, 2, 3], [20, 29, 51]])
    table = rotary_table(position, head_dim, torch.float64)
    assert table.dtype == torch.complex128
    for row, place in enumerate(position.tolist()):
        angles = [
            coordinate * 10_000.0 ** (-2 * pair / width)
            for coordinate, width in zip(place, axis_widths(head_dim), strict=True)
            for pair in range(width // 2)
        ]
        expected = torch.tensor([complex(math.cos(a), math.sin(a)) for a in angles], dtype=torch.complex128)
        torch.testing.assert_close(table[row], expected, rtol=0, atol=1e-13)
    single = rotary_table(position, head_dim, torch.bfloat16)
    assert single.dtype == torch.complex64
    torch.testing.assert_close(single, table.to(torch.complex64), rtol=0, atol=0)


@pytest.mark.parametrize("grid", [Grid(5, 4, 3), Grid(1, 6, 8), Grid(21, 2, 2)])
def test_table_equals_diffusers(grid: Grid) -> None:
    theirs = WanRotaryPosEmbed(64, (1, 2, 2), 1024)
    cosines, sines = theirs(torch.zeros(1, 16, grid.t, 2 * grid.h, 2 * grid.w))
    table = rotary_table(positions(grid), 64, torch.float32)
    torch.testing.assert_close(table.real, cosines[0, :, 0, 0::2].float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(table.imag, sines[0, :, 0, 1::2].float(), rtol=0, atol=1e-6)


def test_positions_of_a_pack_start_anew_in_each_segment() -> None:
    grids = [Grid(2, 3, 2), Grid(1, 2, 4)]
    tokens = [torch.zeros(grid.num_tokens, 4) for grid in grids]
    texts = [torch.zeros(2, 3)] * 2
    index = PackIndex.of(
        PackFacts.of(make_pack(grids, texts, tokens, [1.0, 2.0], num_tokens=24, num_segments=3, text_tokens=6))
    )
    assert torch.equal(index.position[:20], torch.cat([positions(grid) for grid in grids]))
    assert index.segment[:20].tolist() == [0] * 12 + [1] * 8


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    heads = torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    products = []
    for start in (0, 7):
        place = torch.tensor([[start, start, start], [start + 2, start + 1, start + 5]])
        turned = rotate(heads, rotary_table(place, 24, torch.float64))
        torch.testing.assert_close(turned.norm(dim=-1), heads.norm(dim=-1))
        products.append((turned[0] * turned[1]).sum())
    torch.testing.assert_close(products[0], products[1])
