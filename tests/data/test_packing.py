"""Packs keep all three budgets, lose nothing, are full, and cost alike."""

from __future__ import annotations

import numpy as np
import pytest

from megavideo.data.plan.balance import shares
from megavideo.data.plan.equalise import equalise
from megavideo.data.plan.packing import PackLimits, pack_balanced


def sizes(seed: int, count: int, low: int = 1, high: int = 65) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(low, high, count), rng.integers(1, 20, count)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limits", [PackLimits(64, 1000, 64), PackLimits(128, 40, 64), PackLimits(256, 1000, 3)])
def test_budgets_hold_and_every_item_is_somewhere_once(seed: int, limits: PackLimits) -> None:
    tokens, text = sizes(seed, 200)
    num_packs = int(limits.packs_needed(int(tokens.sum()), int(text.sum()), 200))
    packing = pack_balanced(tokens, text, limits, num_packs)
    for packs in (packing.packs, equalise(packing.packs, tokens, text, limits)):
        for pack in packs:
            assert 1 <= len(pack) <= limits.segments
            assert tokens[pack].sum() <= limits.tokens and text[pack].sum() <= limits.text_tokens
        assert sorted([item for pack in packs for item in pack] + packing.left) == list(range(200))
        assert len(packs) <= num_packs


def test_packs_are_full_and_cost_alike() -> None:
    tokens, text = sizes(9, 4000)
    limits = PackLimits(512, 10_000, 200)
    packs = pack_balanced(tokens, text, limits, int(tokens.sum() // 512)).packs
    cost = np.array([(tokens[pack] ** 2).sum() for pack in packs])
    assert np.mean([tokens[pack].sum() / 512 for pack in packs]) > 0.995
    assert cost.std() / cost.mean() < 0.02
    in_order = [range(begin, begin + 16) for begin in range(0, 4000, 16)]
    assert cost.std() < 0.2 * np.std([(tokens[pack] ** 2).sum() for pack in in_order])


def test_gaps_too_small_for_any_item_are_moved_together() -> None:
    tokens, text = sizes(3, 900, 20, 140)  # as of long clips: the shortest takes a tenth of a pack
    limits = PackLimits(200, 20_000, 99)
    packing = pack_balanced(tokens, text, limits, int(tokens.sum() // 200))
    filled = 1 - sum(200 - tokens[pack].sum() for pack in packing.packs) / 200 / len(packing.packs)
    assert filled > 0.975


def test_equalise_levels_what_a_careless_packing_left() -> None:
    rng = np.random.default_rng(1)
    tokens, text = rng.permutation(np.repeat([10, 20, 30, 60], [120, 60, 40, 20])), np.ones(240, np.int64)
    by_size = np.argsort(-tokens, kind="stable")
    packs: list[list[int]] = [[]]
    for item in by_size.tolist():  # next fit, long ones together
        if tokens[packs[-1]].sum() + tokens[item] > 120:
            packs.append([])
        packs[-1].append(item)
    limits = PackLimits(120, 500, 99)
    before = np.array([(tokens[pack] ** 2).sum() for pack in packs])
    after = np.array([(tokens[pack] ** 2).sum() for pack in equalise(packs, tokens, text, limits)])
    assert after.sum() == before.sum()
    assert after.std() < 0.4 * before.std()


def test_given_order_comes_first() -> None:
    tokens, text = np.array([50, 40, 30, 60]), np.ones(4, np.int64)
    packing = pack_balanced(tokens, text, PackLimits(100, 100, 9), 1, np.array([2, 1, 0, 3]))
    assert packing.packs == [[2, 1]] and packing.left == [0, 3]


def test_what_fits() -> None:
    limits = PackLimits(10, 5, 2, min_text_tokens=3)
    assert limits.takes(10, 5)
    assert not limits.takes(11, 5) and not limits.takes(10, 6)
    assert not PackLimits(10, 5, 2, min_text_tokens=6).takes(1, 1)
    assert limits.packs_needed(20, 5, 2) == 2.0 and limits.packs_needed(5, 5, 6) == 3.0


@pytest.mark.parametrize("dp_size", [1, 2, 3, 4, 6, 8, 12, 24])
def test_ranks_share_packs_evenly(dp_size: int) -> None:
    cost = np.random.default_rng(0).integers(50, 100, 24).tolist()
    ranks = shares(cost, dp_size)
    assert sorted(number for rank in ranks for number in rank) == list(range(24))
    assert {len(rank) for rank in ranks} == {24 // dp_size}
    assert all([cost[n] for n in rank] == sorted((cost[n] for n in rank), reverse=True) for rank in ranks)
    sums = [sum(cost[n] for n in rank) for rank in ranks]
    in_order = [sum(cost[i : i + 24 // dp_size]) for i in range(0, 24, 24 // dp_size)]
    assert max(sums) <= max(in_order)
    if dp_size <= 8:
        assert np.mean(sums) / max(sums) > 0.97


def test_packs_of_thousands_of_items_are_left_as_they_are() -> None:
    """They are too large for exchanges between them, and what finds no place is left over."""
    tokens, text = np.ones(3700, np.int64), np.ones(3700, np.int64)
    packing = pack_balanced(tokens, text, PackLimits(2000, 4000, 1800, 1), 2)
    assert [len(pack) for pack in packing.packs] == [1800, 1800] and len(packing.left) == 100
