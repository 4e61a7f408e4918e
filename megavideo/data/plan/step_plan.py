"""The step plan: what every global step trains on, as a pure function of (manifest, seed, stage, limits, step).

Ranks only take their share of it, so that the data of a step depends on no layout and a run resumes anywhere.

Packs are planned by size: a recipe says which sizes share a pack, and how often. Which sample of a size takes a place,
and which packs share a step, is settled for a round of some hundred packs when one of them is asked for, by keyed
permutations with random access. So no table as long as the data is made, and any step is reached at once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megavideo.data.patches import token_grid
from megavideo.data.permutation import Integers, Keys, keys, mix, permute, shuffled
from megavideo.data.plan.balance import shares
from megavideo.data.plan.packing import PackLimits
from megavideo.data.plan.recipe import make_recipe
from megavideo.data.plan.size_classes import DroppedSamples, make_classes
from megavideo.data.table.sample_table import SampleTable
from megavideo.errors import DataError
from megavideo.types import PackSegment

_MAX_NAMED = 5
_KEPT_ROUNDS = 3  # a step may lie in two, and the next one is made ahead
_PHASES, _ORDER, _MEMBERS = range(3)  # what a key is for

Pack = tuple[PackSegment, ...]


@dataclass(frozen=True)
class StagePlace:
    """Where a stage of a curriculum stands in its run: its number, its first global step, and its samples' first visit.

    Stages that train on the same samples draw other noise for each visit only where their visits are others:
    `StepPlan.visits_reached` of the stage before is the `first_visit` of the next.
    """

    stage: int = 0
    first_step: int = 0
    first_visit: int = 0


WHOLE_RUN = StagePlace()


@dataclass(frozen=True)
class PlanSettings:
    """What a plan is made from besides the samples.

    The plan of a `stage` begins at the global step `first_step`, with visit `first_visit` of its samples. `weights`
    maps `image`, `video` or a glob over sources to how often such samples are seen beside those that match none, which
    are seen once; the first match counts, and 0 leaves out.
    """

    patch: tuple[int, int, int]
    limits: PackLimits
    packs_per_step: int
    seed: int
    stage: int = 0
    weights: Mapping[str, float] | None = None
    first_step: int = 0
    first_visit: int = 0


@dataclass(frozen=True)
class _Round:
    """Consecutive packs of a cycle, from `begin`: rows and visits of all places, and where each pack's begin."""

    begin: int
    rows: Integers
    visits: Integers
    pack_begin: Integers

    @property
    def end(self) -> int:
        return self.begin + len(self.pack_begin) - 1


class StepPlan:
    """Packs of every global step.

    Every sample of weight 1 is visited once an epoch, one of weight w w times; `visit` counts a sample's visits. Passes
    follow each other without a gap, and where the data is small, what fills no pack goes into the first of the next.
    """

    def __init__(self, table: SampleTable, settings: PlanSettings) -> None:
        """Plan the rows of `table`. Raises DataError where it was made for other sources, or nothing fits a pack."""
        weights = dict(settings.weights or {})
        _check_groups(table, weights)
        classes, self.dropped = make_classes(table, settings.patch, settings.limits, (*weights.values(), 1.0))
        _tell_dropped(self.dropped, len(table))
        if classes is None:
            raise _none_fits(table, settings.limits, weights)
        self._table = table
        self._settings = settings
        self._classes = classes
        self._recipe = make_recipe(classes, settings.limits)
        self._rounds: dict[tuple[int, int], _Round] = {}
        self._phases: tuple[int, Integers] = (-1, np.zeros(0, np.int64))

    @property
    def max_segments(self) -> int:
        """Samples in the pack that holds most of them; the same for every seed and step."""
        return self._recipe.max_segments

    @property
    def packs_per_cycle(self) -> int:
        """Packs after which every sample has been seen as often as its weight says: whole passes over all of them."""
        return self._recipe.num_packs

    @property
    def passes_per_cycle(self) -> int:
        """Visits of the samples seen most often in as many packs."""
        return self._recipe.passes

    def step(self, step: int) -> list[Pack]:
        """The packs of one global step, in order; ValueError where the stage begins after it."""
        begin = self._packs_until(step)
        return [self._pack(number) for number in range(begin, begin + self._settings.packs_per_step)]

    def epoch_of(self, step: int) -> int:
        """Whole passes over the samples seen most often before the round in which a step begins.

        They are counted from `first_visit`.
        """
        cycle, offset = divmod(self._packs_until(step), self._recipe.num_packs)
        number = self._find(cycle, offset)
        passes = cycle * self._recipe.passes + number * self._recipe.passes // self._recipe.rounds
        return self._settings.first_visit + passes

    def visits_reached(self, step: int) -> int:
        """The least visit that no sample has had, or will have, in the rounds of packs that steps before `step` touch.

        As the `first_visit` of a stage that begins at `step`, it lets no (sample, visit) of before come again.
        """
        packs, recipe = self._packs_until(step), self._recipe
        if not packs:
            return self._settings.first_visit
        cycle, offset = divmod(packs - 1, recipe.num_packs)
        taken = cycle * recipe.per_cycle + self._taken(self._find(cycle, offset) + 1, cycle)
        return self._settings.first_visit + int(np.max(-(-taken // self._classes.count)))

    def _packs_until(self, step: int) -> int:
        """Packs of the stage before a global step."""
        if step < self._settings.first_step:
            raise ValueError(f"step {step} is before the stage, which begins at {self._settings.first_step}")
        return (step - self._settings.first_step) * self._settings.packs_per_step

    def _pack(self, number: int) -> Pack:
        cycle, offset = divmod(number, self._recipe.num_packs)
        found = self._round(cycle, self._find(cycle, offset))
        place = offset - found.begin
        begin, end = found.pack_begin[place : place + 2].tolist()
        return tuple(self._segment(row, visit) for row, visit in zip(
            found.rows[begin:end].tolist(), found.visits[begin:end].tolist(), strict=True
        ))  # fmt: skip

    def _segment(self, row: int, visit: int) -> PackSegment:
        table, settings = self._table, self._settings
        sample = int(table.index[row])
        grid = token_grid(table.grid(sample), settings.patch)
        visit += settings.first_visit
        return PackSegment(sample, table.sample_id(sample), visit, grid, int(table.text[sample]))

    def _find(self, cycle: int, offset: int) -> int:
        """The round in which pack `offset` of a cycle is."""
        for (known, number), each in tuple(self._rounds.items()):  # the feed's thread may add one
            if known == cycle and each.begin <= offset < each.end:
                return number
        low, high = 0, self._recipe.rounds
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._packs_before(cycle, middle) <= offset else (low, middle)
        return low

    def _packs_before(self, cycle: int, number: int) -> int:
        return int(self._recipe.copies_before(number, self._phases_of(cycle)).sum())

    def _taken(self, number: int, cycle: int) -> Integers:
        """Samples of each class that the packs before round `number` of a cycle take."""
        recipe = self._recipe
        copies = recipe.copies_before(number, self._phases_of(cycle))
        taken = np.zeros(len(recipe.per_cycle), np.int64)
        np.add.at(taken, recipe.slot_class, np.repeat(copies, np.diff(recipe.pattern_begin)))
        return taken

    def _phases_of(self, cycle: int) -> Integers:
        known, phases = self._phases  # at once: the feed's thread may ask for another cycle meanwhile
        if known != cycle:
            bits = mix(self._key(_PHASES, cycle) + np.arange(len(self._recipe.copies), dtype=np.uint64))
            phases = self._recipe.phases(bits)
            self._phases = (cycle, phases)
        return phases

    def _round(self, cycle: int, number: int) -> _Round:
        if (cycle, number) not in self._rounds:
            while len(self._rounds) >= _KEPT_ROUNDS:
                del self._rounds[next(iter(self._rounds))]
            self._rounds[cycle, number] = self._make_round(cycle, number)
        return self._rounds[cycle, number]

    def _make_round(self, cycle: int, number: int) -> _Round:
        recipe, phases = self._recipe, self._phases_of(cycle)
        before, after = (recipe.copies_before(at, phases) for at in (number, number + 1))
        patterns = np.repeat(np.arange(len(before)), after - before)
        patterns = patterns[shuffled(len(patterns), self._key(_ORDER, cycle, number))]
        lengths = np.diff(recipe.pattern_begin)[patterns]
        pack_begin = np.concatenate([[0], np.cumsum(lengths)])
        slots = np.repeat(recipe.pattern_begin[patterns] - pack_begin[:-1], lengths) + np.arange(pack_begin[-1])
        classes = recipe.slot_class[slots]
        taken = self._taken(number, cycle)
        position = cycle * recipe.per_cycle[classes] + taken[classes] + _rank_among_equals(classes)
        visits, place = np.divmod(position, self._classes.count[classes])
        member = permute(place, self._classes.count[classes], self._key(_MEMBERS, classes, visits))
        return _Round(int(before.sum()), self._classes.rows(classes, member), visits, pack_begin)

    def _key(self, use: int, *parts: int | Integers) -> Keys:
        return keys(self._settings.seed, self._settings.stage, use, *parts)


def rank_share(packs: Sequence[Pack], dp_rank: int, dp_size: int) -> list[Pack]:
    """One data-parallel rank's packs of a step, the costliest first; `dp_size` divides the packs of a step.

    Ranks have as many packs each, with attention that costs as near the same as those packs allow.
    """
    cost = [sum(segment.grid.num_tokens**2 for segment in pack) for pack in packs]
    return [packs[number] for number in shares(cost, dp_size)[dp_rank]]


def _rank_among_equals(values: Integers) -> Integers:
    """How many equal values come before each."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(values) else ordered
    rank = np.empty_like(values)
    rank[order] = np.arange(len(values)) - np.repeat(starts, np.diff(np.append(starts, len(values))))
    return rank


def _check_groups(table: SampleTable, weights: Mapping[str, float]) -> None:
    if table.groups != (*weights, ""):
        raise DataError(
            f"the table of samples was made for the sources {list(table.groups[:-1])}, and the weights name "
            f"{list(weights)}. Remedy: make it anew"
        )


def _tell_dropped(dropped: DroppedSamples, num_samples: int) -> None:
    if dropped.count:
        named = "; ".join(f"{d.sample_id}: {d.reason}" for d in dropped.first[:_MAX_NAMED])
        logging.getLogger(__name__).warning("%d of %d samples fit no pack: %s", dropped.count, num_samples, named)


def _weights_of_groups(table: SampleTable, weights: Mapping[str, float]) -> list[float]:
    return [weight for group, weight in enumerate((*weights.values(), 1.0)) if (table.run_group == group).any()]


def _none_fits(table: SampleTable, limits: PackLimits, weights: Mapping[str, float]) -> DataError:
    if weights and not any(_weights_of_groups(table, weights)):
        return DataError(
            f"data.sources={dict(weights)} leaves out all {len(table)} samples. Remedy: give one of them more than 0"
        )
    return DataError(
        f"none of the {len(table)} samples fits a pack of data.tokens_per_pack={limits.tokens} and "
        f"data.text_tokens_per_pack={limits.text_tokens}. Remedy: raise them, or encode with a smaller area or "
        "fewer frames"
    )
