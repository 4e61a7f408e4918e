"""Keyed permutations: one to one, far from the identity, and fair."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from megavideo.data.permutation import keys, permute, shuffled


def whole(size: int, key: int) -> list[int]:
    positions = np.arange(size)
    return permute(positions, np.full(size, size), np.repeat(keys(key), size)).tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10, 64, 101, 1000, 65_537])
def test_one_to_one(size: int) -> None:
    orders = [whole(size, key) for key in range(3)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size >= 64:
        assert orders[0] != orders[1] != orders[2]
        still = sum(position == place for position, place in enumerate(orders[0]))
        assert still < 12  # one is due


def test_elements_of_many_sizes_at_once() -> None:
    sizes = np.array([5, 1, 12, 5, 10**12])
    positions = np.array([3, 0, 11, 4, 10**12 - 1])
    together = permute(positions, sizes, keys(np.arange(5)))
    alone = [permute(positions[i : i + 1], sizes[i : i + 1], keys(np.array([i])))[0] for i in range(5)]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < sizes)).all()


@pytest.mark.parametrize("size", [3, 4, 10])
def test_small_permutations_are_fair(size: int) -> None:
    draws = 6000
    counts = np.zeros((size, size))
    for key in range(draws // size):
        counts[np.arange(size), whole(size, key)] += 1
    expected = draws // size / size
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    degrees = (size - 1) ** 2
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5
    pairs = Counter(tuple(whole(size, key)[:2]) for key in range(2000))
    assert len(pairs) == size * (size - 1)  # neighbours do not stay neighbours


def test_shuffled() -> None:
    one, two = shuffled(500, keys(1)), shuffled(500, keys(2))
    assert sorted(one.tolist()) == list(range(500)) and one.tolist() != two.tolist()
    assert shuffled(5, keys(7)).tolist() == shuffled(5, keys(7)).tolist()
    assert shuffled(0, keys(7)).tolist() == []


def test_keys_tell_every_part_apart() -> None:
    made = {int(keys(*parts)[0]) for parts in ((0, 0), (0, 1), (1, 0), (0,), (0, 0, 0), (2**63, 1), (-1, 0))}
    assert len(made) == 7
    assert keys(3, np.array([4, 5]))[1] == keys(3, 5)[0]
