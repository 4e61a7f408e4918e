"""Samples of nearly one size as classes: packs are planned for the few classes, and not for the many samples."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from megavideo.data.permutation import Integers
from megavideo.data.plan.packing import PackLimits
from megavideo.data.table.sample_table import SampleTable
from megavideo.errors import DataError

_RATIO = 1.004  # sizes of one class differ by less, unless it has as many samples as this:
_MANY = 512
_TEXT_LEVELS = 4  # classes by caption length, where captions may fill a pack before its video does
_MAX_SCALE = 1000  # visits of the source seen most often, within which those of each source are a whole number
_TOLERANCE = 1e-3  # relative, of a weight, where so many visits allow it
_MOST_NAMED = 100


@dataclass(frozen=True)
class Dropped:
    """A sample that no pack can take."""

    sample_id: str
    reason: str


@dataclass(frozen=True)
class DroppedSamples:
    """How many samples no pack can take, and the first of them."""

    count: int = 0
    first: tuple[Dropped, ...] = ()

    def with_more(self, count: int, named: Iterable[Dropped]) -> DroppedSamples:
        """These and `count` more, of which as many are named as there is room for."""
        room = _MOST_NAMED - len(self.first)
        return DroppedSamples(self.count + count, (*self.first, *itertools.islice(named, room)))


@dataclass(frozen=True)
class SizeClasses:
    """C classes, seen `repeats` times for each `passes` of those seen most often.

    tokens [C] and text [C] are what one sample takes at the most; count [C] its samples. Member m of class c is number
    first[c] + m of the members of all, which are rows of the table: range_begin[r] onward for numbers from
    range_first[r] to the next.
    """

    tokens: Integers
    text: Integers
    count: Integers
    repeats: Integers
    first: Integers
    range_first: Integers
    range_begin: Integers

    @property
    def passes(self) -> int:
        """Visits of the samples seen most often while each class is seen `repeats` times."""
        return int(self.repeats.max())

    def rows(self, number: Integers, member: Integers) -> Integers:
        """Rows of the table of members of classes."""
        overall = self.first[number] + member
        place = np.searchsorted(self.range_first, overall, side="right") - 1
        rows: Integers = self.range_begin[place] + overall - self.range_first[place]
        return rows


@dataclass(frozen=True)
class _Range:
    repeats: int
    level: int
    tokens: int
    text: int
    begin: int
    end: int


def make_classes(
    table: SampleTable, patch: tuple[int, int, int], limits: PackLimits, weights: Sequence[float]
) -> tuple[SizeClasses | None, DroppedSamples]:
    """Classes of the samples that fit a pack, and the samples that do not; `weights` are those of the table's groups.

    Samples of weight 0 are in neither. None where no sample is left. Raises DataError as `whole_repeats` does.
    """
    repeats = whole_repeats([w if np.any(table.run_group == g) else 0.0 for g, w in enumerate(weights)])
    dropped = DroppedSamples()
    ranges: list[_Range] = []
    for one, fitting in _ranges(table, patch, limits, repeats):
        if fitting < one.end:
            unfit = (_dropped(table, row, one.tokens, limits) for row in range(fitting, one.end))
            dropped = dropped.with_more(one.end - fitting, unfit)
        if fitting > one.begin:
            ranges.append(replace(one, end=fitting))
    ranges.sort(key=lambda r: (r.repeats, r.level, r.tokens))
    return (_merged(ranges) if ranges else None), dropped


def whole_repeats(weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to the weights, to a thousandth of the largest; the smallest there are. 0 stays 0.

    Raises DataError where a weight is less than a thousandth of the largest: it would count for more than it says.
    """
    most = max(weights, default=0.0)
    if most <= 0.0:
        return [0] * len(weights)
    shares = np.array([w / most for w in weights if w > 0])
    if shares.min() * _MAX_SCALE < 1 - _TOLERANCE:
        raise DataError(
            f"data.sources: weights from {most * shares.min():g} to {most:g} (1 for samples of no named source) are "
            f"more than {_MAX_SCALE} times apart. Remedy: bring them nearer, or take 0 to leave samples out"
        )
    for scale in range(1, _MAX_SCALE + 1):
        if (np.abs(np.rint(shares * scale) - shares * scale) <= _TOLERANCE * shares * scale).all():
            break
    return [max(1, round(w / most * scale)) if w > 0 else 0 for w in weights]


def _ranges(
    table: SampleTable, patch: tuple[int, int, int], limits: PackLimits, repeats: Sequence[int]
) -> Iterator[tuple[_Range, int]]:
    """Runs of rows that are trained on, each with the row from which its samples fit no pack."""
    patch_volume = int(np.prod(patch))

    def text_of(row: int) -> int:
        return int(table.text[table.index[row]])

    longest = limits.text_need(max((text_of(end - 1) for end in table.run_begin[1:].tolist()), default=1))
    binding = longest * limits.segments > limits.text_tokens
    for run, (group, volume) in enumerate(zip(table.run_group.tolist(), table.run_volume.tolist(), strict=True)):
        begin, end = int(table.run_begin[run]), int(table.run_begin[run + 1])
        if not repeats[group]:
            continue
        tokens, fitting = volume // patch_volume, begin
        if limits.takes(tokens, 0):
            fitting = bisect_right(range(end), limits.text_tokens, lo=begin, key=text_of)
        text = limits.text_need(text_of(fitting - 1)) if fitting > begin else 0
        level = (text - 1) * _TEXT_LEVELS // longest if binding and text else 0
        yield _Range(repeats[group], level, tokens, text, begin, end), fitting


def _dropped(table: SampleTable, row: int, tokens: int, limits: PackLimits) -> Dropped:
    sample = int(table.index[row])
    need = f"{tokens} video and {limits.text_need(int(table.text[sample]))} text tokens"
    return Dropped(table.sample_id(sample), f"{need}; a pack takes {limits.tokens} and {limits.text_tokens}")


def _merged(ranges: Sequence[_Range]) -> SizeClasses:
    starts: list[int] = []
    members = 0
    for number, one in enumerate(ranges):
        before = ranges[starts[-1]] if starts else None
        alike = before is not None and (one.repeats, one.level) == (before.repeats, before.level)
        same = before is not None and one.tokens == ranges[number - 1].tokens
        near = before is not None and members < _MANY and one.tokens <= _RATIO * before.tokens
        if not alike or not (same or near):
            starts.append(number)
            members = 0
        members += one.end - one.begin
    sizes = np.array([one.end - one.begin for one in ranges], np.int64)
    first = np.concatenate([[0], np.cumsum(sizes)])
    return SizeClasses(
        tokens=np.maximum.reduceat(np.array([one.tokens for one in ranges], np.int64), starts),
        text=np.maximum.reduceat(np.array([one.text for one in ranges], np.int64), starts),
        count=np.add.reduceat(sizes, starts),
        repeats=np.array([ranges[start].repeats for start in starts], np.int64),
        first=first[starts],
        range_first=first[:-1],
        range_begin=np.array([one.begin for one in ranges], np.int64),
    )
