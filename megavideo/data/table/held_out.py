"""Samples that are held out of training, so that a run can be measured on what it has not seen.

Samples fall into strata by duration (images, then octaves of frames) and resolution (octaves of pixels). Within one
they stand in the order of the hash of their ids, and strata give in turn: the first of each, then the second. The
order in which they give is a hash of the stratum's, an image stratum and one of videos by turns. A stratum gives more
than half of its samples only when every other has given its half, so that no size is lost to training where there are
samples enough.

So the choice depends on ids and sizes alone, and on no seed. When data is added, a held-out sample stays held out
unless new ones of its own stratum come before it, or new strata take their share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from megavideo.data.permutation import Integers, Keys, keys
from megavideo.data.table.sample_table import CHUNK, SampleTable
from megavideo.errors import DataError

_KEY = 0x6D656761766964  # of the order of strata
_RESOLUTIONS = 64  # more octaves than pixels can have


@dataclass
class _Stratum:
    """The samples with the smallest hashes so far, smallest first, and how many samples there are."""

    population: int = 0
    hashes: Keys = field(default_factory=lambda: np.zeros(0, np.uint64))
    samples: Integers = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, hashes: Keys, samples: Integers, most: int) -> None:
        self.population += len(samples)
        hashes, samples = np.concatenate([self.hashes, hashes]), np.concatenate([self.samples, samples])
        first = np.lexsort((samples, hashes))[:most]
        self.hashes, self.samples = hashes[first], samples[first]


def held_out(table: SampleTable, count: int) -> Integers:
    """`count` of the table's samples to be held out, [count] sorted; see the head of this file for the rule.

    Raises DataError where none would be left to train on.
    """
    among = np.zeros(table.num_samples, np.bool_)
    for begin in range(0, len(table), CHUNK):
        among[table.index[begin : begin + CHUNK]] = True
    return pick_held_out(table, among, count)


def pick_held_out(
    table: SampleTable,
    among: npt.NDArray[np.bool_],
    count: int,
    on_progress: Callable[[], None] = lambda: None,
) -> Integers:
    """As `held_out`, of the samples whose flags `among` [N] are set. `on_progress` is called now and then."""
    available = int(np.count_nonzero(among))
    if count >= available:
        raise DataError(
            f"validation.clips={count}: so many held-out samples of {available} leave none to train on. Remedy: "
            "lower validation.clips, or name a dataset of its own in validation.uri"
        )
    strata = _strata(table, among, count, on_progress)
    turn = _turns(list(strata))
    offers = [
        (place >= stratum.population // 2, place, *turn[code], sample)
        for code, stratum in strata.items()
        for place, sample in enumerate(stratum.samples.tolist())
    ]
    return np.array(sorted(offer[-1] for offer in sorted(offers)[:count]), np.int64)


def _strata(
    table: SampleTable, among: npt.NDArray[np.bool_], count: int, on_progress: Callable[[], None]
) -> dict[int, _Stratum]:
    strata: dict[int, _Stratum] = {}
    for chunk in table.chunks():
        hashes = table.id_hash[chunk]
        samples = np.arange(chunk.start, chunk.stop)
        codes = _codes(table.pixels[chunk])
        for code in np.unique(codes[among[chunk]]).tolist():
            mine = (codes == code) & among[chunk]
            strata.setdefault(code, _Stratum()).add(hashes[mine], samples[mine], count)
        on_progress()
    return strata


def _codes(pixels: npt.NDArray[np.int32]) -> Integers:
    """Stratum of each sample [m] of `pixels` [m, 3]; those below _RESOLUTIONS are images."""
    frames, height, width = pixels.astype(np.int64).T
    duration = np.where(frames > 1, 1 + _octave(frames), 0)
    codes: Integers = duration * _RESOLUTIONS + _octave(height * width)
    return codes


def _octave(values: Integers) -> Integers:
    return np.frexp(np.maximum(values, 1).astype(np.float64))[1].astype(np.int64) - 1


def _turns(codes: list[int]) -> dict[int, tuple[int, bool]]:
    """When each stratum gives within a round: its place among those of its kind, and whether these are videos."""
    shuffled = sorted(codes, key=lambda code: int(keys(_KEY, code)[0]))
    turns: dict[int, tuple[int, bool]] = {}
    for video in (False, True):
        of_kind = [code for code in shuffled if (code >= _RESOLUTIONS) == video]
        turns |= {code: (place, video) for place, code in enumerate(of_kind)}
    return turns
