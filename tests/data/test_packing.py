"""Packs keep all three budgets and lose nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from megavideo.data.packing import PackLimits, fill, fits, pack_window
from megavideo.types import Grid, PackSegment


def segment(index: int, tokens: int, text: int = 4) -> PackSegment:
    return PackSegment(index, f"s{index}", 0, Grid(1, 1, tokens), text)


def random_window(seed: int, count: int = 200) -> list[PackSegment]:
    rng = np.random.default_rng(seed)
    return [segment(i, int(rng.integers(1, 65)), int(rng.integers(1, 20))) for i in range(count)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "limits", [PackLimits(64, 1000, 64), PackLimits(128, 40, 64), PackLimits(256, 1000, 3), PackLimits(100, 60, 5, 11)]
)
def test_budgets_hold_and_every_sample_is_packed_once(seed: int, limits: PackLimits) -> None:
    window = random_window(seed)
    packs = pack_window(window, limits)
    for pack in packs:
        assert sum(s.grid.num_tokens for s in pack) <= limits.tokens
        assert sum(max(s.text_tokens, limits.min_text_tokens) for s in pack) <= limits.text_tokens
        assert 1 <= len(pack) <= limits.segments
    assert Counter(s.index for pack in packs for s in pack) == Counter(range(len(window)))
    assert packs == pack_window(window, limits)


def test_little_is_left_empty() -> None:
    limits = PackLimits(256, 10_000, 64)
    packs = pack_window(random_window(9, 400), limits)
    assert fill(packs[:-1], limits) > 0.98
    assert fill([], limits) == 0.0


def test_a_sample_goes_into_the_fullest_pack_that_takes_it() -> None:
    packs = pack_window([segment(0, 60), segment(1, 50), segment(2, 30), segment(3, 40)], PackLimits(100, 100, 9))
    assert sorted(tuple(s.index for s in pack) for pack in packs) == [(0, 3), (1, 2)]


def test_fits() -> None:
    limits = PackLimits(10, 5, 2)
    assert fits(segment(0, 10, 5), limits)
    assert not fits(segment(0, 11, 5), limits)
    assert not fits(segment(0, 10, 6), limits)
    assert not fits(segment(0, 10, 1), PackLimits(10, 5, 2, min_text_tokens=6))
    assert pack_window([], limits) == []
