"""Near-duplicates among all clips: the same outcome whatever the order in which they were read.

Hashes of B bands that differ in at most d bits agree in B - d bands at least. Of bands that are dealt to B - d - 1
groups two that agree fall into one group: clips are compared where they share two bands of a group, and nothing is
missed. Pairs that share so much are found by sorting, so that the time is nearly linear in the number of clips.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import numpy.typing as npt

from megavideo.data.ingest.fingerprint import HASH_BITS
from megavideo.data.ingest.fingerprints import Fingerprints

# Of 255, between the coarse colours of two copies of one clip: re-encoded to half the size and at crf 40, eight real
# clips differed by at most 2.4 in the mean and 13 at the most, while unlike clips of one kind soon differ by more.
_MOST_MEAN_LEVELS, _MOST_LEVELS = 3.0, 16.0
_MOST_STRETCH = 0.1  # of the duration
_CROWD = 64  # more clips of one key are not compared pair by pair, but with those that are kept
_ROWS = 1 << 15  # at a time

Words = npt.NDArray[np.uint16 | np.uint8]
Ranks = npt.NDArray[np.int64]


def find_duplicates(clips: Fingerprints, most_bits: int) -> npt.NDArray[np.int64]:
    """For the index of each clip the index of the kept one that it repeats, -1 for those that are kept; int64 [N].

    The best clips are kept first: more pixels, then more frames, then the order given. Each further one is dropped if
    its hash differs from a kept one's in at most `most_bits` bits and their durations and coarse colours agree. Clips
    are compared with clips, images with images.
    """
    repeated = np.full(len(clips), -1, np.int64)
    order = np.lexsort((-clips.frames, -clips.pixels))
    for kind in (False, True):
        ranked = order[clips.is_image[order] == kind]
        if len(ranked) > 1:
            _Search(clips, ranked, most_bits).run(repeated)
    return repeated


class _Search:
    """The search among the clips `ranked`, best first; in it, clips go by their rank."""

    def __init__(self, clips: Fingerprints, ranked: Ranks, most_bits: int) -> None:
        self._clips = clips
        self._ranked = ranked
        self._most_bits = most_bits
        self._words = _bands(clips, ranked, 16 if most_bits < 16 else 32)

    def run(self, repeated: npt.NDArray[np.int64]) -> None:
        """Note what each dropped clip repeats."""
        worse, better, crowds = self._compared()
        kept: dict[int, list[int]] = defaultdict(list)
        dropped = np.zeros(len(self._ranked), np.bool_)
        for rank in sorted({*worse.tolist(), *crowds}):
            begin, end = np.searchsorted(worse, (rank, rank + 1))
            others = better[begin:end][~dropped[better[begin:end]]]
            of_crowds = {other for crowd in crowds.get(rank, ()) for other in kept[crowd]}
            match = self._nearest(rank, np.union1d(others, np.array(sorted(of_crowds), np.int64)))
            if match is None:
                for crowd in crowds.get(rank, ()):
                    kept[crowd].append(rank)
            else:
                dropped[rank] = True
                repeated[self._ranked[rank]] = self._ranked[match]

    def _compared(self) -> tuple[Ranks, Ranks, dict[int, list[int]]]:
        """Pairs of clips with like hashes, in order: the worse ones and the better ones.

        For clips whose key very many share these crowds are given instead.
        """
        pairs = np.empty(0, np.int64)
        crowds: dict[int, list[int]] = defaultdict(list)
        num_crowds = 0
        for keys in _keys(self._words, self._most_bits):
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            crowded = np.unique(keys[:-_CROWD][keys[_CROWD:] == keys[:-_CROWD]])
            for key in crowded:
                begin, end = np.searchsorted(keys, key, side="left"), np.searchsorted(keys, key, side="right")
                for rank in order[begin:end].tolist():
                    crowds[rank].append(num_crowds)
                num_crowds += 1
            places = np.flatnonzero(keys[1:] == keys[:-1])
            places = places[~np.isin(keys[places], crowded)] if len(crowded) else places
            pairs = np.union1d(pairs, self._near(keys, order, places))
        return pairs >> 32, pairs & 0xFFFFFFFF, crowds

    def _near(self, keys: npt.NDArray[np.uint32], order: Ranks, places: Ranks) -> Ranks:
        """Of clips with equal keys those with like hashes: pairs of ranks in one number, the worse one first.

        `keys` are sorted, `order` are their clips, and a key that several share begins at one of `places`.
        """
        found = []
        for step in range(1, _CROWD):
            places = places[places + step < len(keys)]
            places = places[keys[places + step] == keys[places]]
            for begin in range(0, len(places), _ROWS):
                some = places[begin : begin + _ROWS]
                better, worse = order[some], order[some + step]
                alike = self._distances(self._words[better], self._words[worse]) <= self._most_bits
                found.append(worse[alike] << 32 | better[alike])
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _distances(self, first: Words, second: Words) -> npt.NDArray[np.int64]:
        return np.bitwise_count(first ^ second).sum(axis=1, dtype=np.int64)

    def _nearest(self, rank: int, others: Ranks) -> int | None:
        distances = self._distances(self._words[others], self._words[rank])
        near = np.flatnonzero(distances <= self._most_bits)
        for place in near[np.argsort(distances[near], kind="stable")].tolist():
            other = int(others[place])
            if self._confirmed(int(self._ranked[rank]), int(self._ranked[other])):
                return other
        return None

    def _confirmed(self, first: int, second: int) -> bool:
        """True where duration and colours of two clips with like hashes agree as well."""
        seconds = self._clips.seconds[[first, second]]
        if abs(seconds[0] - seconds[1]) > _MOST_STRETCH * seconds.max():
            return False
        levels = np.abs(self._clips.colours(first) - self._clips.colours(second))
        return float(levels.mean()) <= _MOST_MEAN_LEVELS and float(levels.max()) <= _MOST_LEVELS


def _bands(clips: Fingerprints, ranked: Ranks, num_bands: int) -> Words:
    """The hashes of clips as bands [N, B] of equally many bits each.

    The bits of the four frames are dealt differently, so that a clip of little motion does not say the same twice.
    """
    dealt = np.arange(HASH_BITS).reshape(4, -1)
    for frame, factor in enumerate((1, 5, 9, 13)):  # odd, so that each is a permutation of 64 bits
        dealt[frame] = dealt[frame][np.arange(HASH_BITS // 4) * factor % (HASH_BITS // 4)]
    dtype = np.uint16 if HASH_BITS // num_bands == 16 else np.uint8
    bands: Words = np.empty((len(ranked), num_bands), dtype)
    for begin in range(0, len(ranked), _ROWS):
        bits = np.unpackbits(clips.hashes[ranked[begin : begin + _ROWS]], axis=1)[:, dealt.ravel()]
        bands[begin : begin + _ROWS] = np.ascontiguousarray(np.packbits(bits, axis=1)).view(dtype)
    return bands


def _keys(words: Words, most_bits: int) -> Iterator[npt.NDArray[np.uint32]]:
    """Keys [N] of which two hashes [N, B] share at least one where they differ in no more than `most_bits` bits."""
    num_bands = words.shape[1]
    num_groups = num_bands - most_bits - 1
    if num_groups == 0:
        yield from (words[:, band].astype(np.uint32) for band in range(num_bands))
        return
    for group in range(num_groups):
        for first, second in combinations(range(group, num_bands, num_groups), 2):
            yield (words[:, first].astype(np.uint32) << np.uint32(16)) | words[:, second]
