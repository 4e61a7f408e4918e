"""Samples into rows by (group, size, caption length), for any number of them in little memory.

Many samples have few different keys. So they are counted by key first, and each then goes straight to its place: a
counting sort, in passes over columns that may be mapped from files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megavideo.data.permutation import Integers
from megavideo.errors import DataError

_CHUNK = 1 << 18
_TEXT_STEP = 32  # captions of one run differ in length by less


@dataclass(frozen=True)
class Runs:
    """R runs of rows: begin [R + 1], group [R] and volume [R]."""

    begin: Integers
    group: Integers
    volume: Integers


def rows_in_order(
    group: npt.NDArray[np.int32],
    latent: npt.NDArray[np.int32],
    text: npt.NDArray[np.int32],
    index: Integers,
    on_progress: Callable[[], None] = lambda: None,
) -> Runs:
    """Write into `index` [n] the samples, sorted by (group, volume, caption length, sample); the runs that they make.

    group [n], latent [n, 3] and text [n] are by sample. Memory is taken for each key that occurs, 16 bytes, and for
    some hundred thousand samples. Raises DataError where sizes are too large for a key of 63 bits.
    """
    most = np.zeros(3, np.int64)
    for _, parts in _chunks(group, latent, text):
        most = np.maximum(most, parts.max(axis=1))
        on_progress()
    radix = [int(value) + 1 for value in most]
    if radix[0] * radix[1] * radix[2] >= 1 << 63:
        raise DataError(f"groups, latent volumes and caption lengths up to {most.tolist()} are too large to be sorted")

    found, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for _, parts in _chunks(group, latent, text):
        found, counts = _counted(found, counts, _keys(parts, radix))
        on_progress()

    place = np.concatenate([[0], np.cumsum(counts)])
    free = place[:-1].copy()
    for begin, parts in _chunks(group, latent, text):
        keys = _keys(parts, radix)
        order = np.argsort(keys, kind="stable")
        first = np.flatnonzero(np.diff(keys[order], prepend=-1))
        times = np.diff(first, append=len(order))
        slots = np.searchsorted(found, keys[order[first]])
        index[np.repeat(free[slots] - first, times) + np.arange(len(order))] = begin + order
        free[slots] += times
        on_progress()
    return _runs(found, place, radix)


def _chunks(
    group: npt.NDArray[np.int32], latent: npt.NDArray[np.int32], text: npt.NDArray[np.int32]
) -> Iterator[tuple[int, Integers]]:
    """First sample and group, volume and caption length [3, m] of some samples at a time."""
    for begin in range(0, len(text), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        yield begin, np.stack([group[part], latent[part].prod(axis=1, dtype=np.int64), text[part]])


def _keys(parts: Integers, radix: list[int]) -> Integers:
    keys: Integers = (parts[0] * radix[1] + parts[1]) * radix[2] + parts[2]
    return keys


def _counted(found: Integers, counts: Integers, keys: Integers) -> tuple[Integers, Integers]:
    """Sorted keys with their counts, after those of some more samples. Most of these are of keys that are known."""
    values, times = np.unique(keys, return_counts=True)
    slots = np.searchsorted(found, values)
    new = np.append(found, -1)[slots] != values
    counts[slots[~new]] += times[~new]
    return np.insert(found, slots[new], values[new]), np.insert(counts, slots[new], times[new])


def _runs(found: Integers, place: Integers, radix: list[int]) -> Runs:
    rest, text = np.divmod(found, radix[2])
    group, volume = np.divmod(rest, radix[1])
    kinds = np.stack([group, volume, text // _TEXT_STEP])
    first = np.flatnonzero(np.diff(kinds, prepend=-1).any(axis=0))
    return Runs(np.append(place[first], place[-1]), group[first], volume[first])
