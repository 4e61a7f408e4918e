"""Keyed pseudo-random order with random access: where position i of a shuffled list of n comes from, without the list.

Everything is 64-bit integer arithmetic, so that the order is the same on every machine and with every numpy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WORD = (1 << 64) - 1


def mix(value: Keys) -> Keys:
    """A bijection of 64-bit words whose output looks random: the finaliser of SplitMix64 (Steele et al. 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def keys(*parts: int | Integers) -> Keys:
    """One key for each element of the broadcast parts; of all-integer parts an array of one."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        word = np.array([part & _WORD], np.uint64) if isinstance(part, int) else part.astype(np.uint64)
        state = mix(state * _GOLDEN + word + _GOLDEN)
    return state


def shuffled(count: int, key: Keys) -> Integers:
    """A permutation of `count` numbers, as an array."""
    noise = mix(np.arange(count, dtype=np.uint64) * _GOLDEN + key)
    return np.argsort(noise, kind="stable")


def permute(position: Integers, size: Integers, key: Keys) -> Integers:
    """Where `position` of [0, size) goes in the permutation that `key` names; all three of one shape.

    A Feistel network over two digits whose bases multiply to `size` or little more; what falls outside walks on along
    its cycle (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    left_base = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    right_base = (size.astype(np.uint64) + left_base - np.uint64(1)) // left_base
    out = _network(position.astype(np.uint64), left_base, right_base, key)
    outside = np.flatnonzero(out >= size.astype(np.uint64))
    while len(outside):
        out[outside] = _network(out[outside], left_base[outside], right_base[outside], key[outside])
        outside = outside[out[outside] >= size[outside].astype(np.uint64)]
    return out.astype(np.int64)


def _network(value: Keys, left_base: Keys, right_base: Keys, key: Keys) -> Keys:
    left, right = value // right_base, value % right_base
    for number in range(_ROUNDS):
        salt = key + np.uint64((number + 1) * int(_GOLDEN) & _WORD)
        if number % 2:
            right = (right + mix(left ^ salt) % right_base) % right_base
        else:
            left = (left + mix(right ^ salt) % left_base) % left_base
    return left * right_base + right
