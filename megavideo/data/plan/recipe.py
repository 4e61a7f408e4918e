"""The packs of a cycle as patterns: which classes each holds, and how often it comes.

A cycle is the fewest whole passes over the data that make enough packs. Its patterns are found once, from the counts of
the classes: a sample's place in a pack is settled only when a step is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megavideo.data.permutation import Integers, Keys, keys, shuffled
from megavideo.data.plan.equalise import equalise
from megavideo.data.plan.packing import Packing, PackLimits, pack_balanced
from megavideo.data.plan.size_classes import SizeClasses

_ITEMS = 1 << 16  # packed one by one; more than that are divided by a power of two first
_MIN_PACKS = 256  # of a cycle, so that its last, part-filled pack does not tell
_ROUND_PACKS = 512
_GOOD = 0.97  # fill of a pattern that is worth repeating


@dataclass(frozen=True)
class Recipe:
    """J patterns of S slots. Slots pattern_begin[j] to pattern_begin[j + 1] of slot_class are those of pattern j.

    Pattern j comes copies[j] times in a cycle, spread evenly over `rounds`, or all in round fixed_round[j].
    `per_cycle` [C] is how many samples of each class that takes; `passes` are visits of those seen most often.
    """

    slot_class: Integers
    pattern_begin: Integers
    copies: Integers
    fixed_round: Integers | None
    rounds: int
    passes: int
    per_cycle: Integers

    @property
    def num_packs(self) -> int:
        """Packs of a cycle."""
        return int(self.copies.sum())

    @property
    def max_segments(self) -> int:
        """Samples in the pack that holds most."""
        return int(np.diff(self.pattern_begin).max())

    def phases(self, bits: Keys) -> Integers:
        """When within `rounds` each pattern falls due, [J], given 64 random bits for each."""
        if self.fixed_round is not None:
            return self.rounds - 1 - self.fixed_round
        return (bits % np.uint64(self.rounds)).astype(np.int64)

    def copies_before(self, number: int, phases: Integers) -> Integers:
        """Copies of each pattern [J] that come before round `number` of a cycle."""
        whole, rest = np.divmod(self.copies, self.rounds)
        return whole * number + (rest * number + phases) // self.rounds


@dataclass(frozen=True)
class _Pattern:
    classes: Integers
    copies: int
    round: int


def make_recipe(classes: SizeClasses, limits: PackLimits) -> Recipe:
    """Patterns for whole passes over the classes; the same for every seed."""
    demand = limits.packs_needed(*(int((each * classes.count * classes.repeats).sum()) for each in _takes(classes)))
    cycles = max(1, int(np.ceil(_MIN_PACKS / demand)))
    passes = cycles * classes.passes
    per_cycle = cycles * classes.repeats * classes.count
    one_by_one = int(per_cycle.sum()) <= _ITEMS
    if one_by_one:
        patterns, rounds = _pass_by_pass(classes, limits, per_cycle, passes), passes
    else:
        patterns = _divided(classes, limits, per_cycle)
        rounds = max(1, sum(pattern.copies for pattern in patterns) // _ROUND_PACKS)
    lengths = [len(pattern.classes) for pattern in patterns]
    return Recipe(
        slot_class=np.concatenate([pattern.classes for pattern in patterns]),
        pattern_begin=np.concatenate([[0], np.cumsum(lengths)]),
        copies=np.array([pattern.copies for pattern in patterns], np.int64),
        fixed_round=np.array([p.round for p in patterns], np.int64) if one_by_one else None,
        rounds=rounds,
        passes=passes,
        per_cycle=per_cycle,
    )


def _pass_by_pass(classes: SizeClasses, limits: PackLimits, per_cycle: Integers, passes: int) -> list[_Pattern]:
    """Each pass makes as many packs as it fills; what it leaves goes first into the packs of the next."""
    stagger = shuffled(len(per_cycle), keys(0)) % passes
    patterns: list[_Pattern] = []
    waiting = np.zeros(0, np.int64)
    for number in range(passes):
        fresh = (per_cycle * (number + 1) + stagger) // passes - (per_cycle * number + stagger) // passes
        items = np.concatenate([waiting, np.repeat(np.arange(len(per_cycle)), fresh)])
        last = number == passes - 1
        packs, left = _packed(classes, limits, items, len(waiting), all_of_them=last)
        patterns += [_Pattern(pack, 1, number) for pack in packs]
        waiting = left
    return patterns


def _divided(classes: SizeClasses, limits: PackLimits, per_cycle: Integers) -> list[_Pattern]:
    """Counts divided by k packed once and repeated k times; the rest again with a smaller k, at last with one."""
    patterns: list[_Pattern] = []
    remaining, divisor = per_cycle.copy(), 1 << 62
    while divisor > 1:
        divisor //= 2
        while divisor > 1 and int((remaining // (divisor // 2)).sum()) <= _ITEMS:
            divisor //= 2
        items = np.repeat(np.arange(len(remaining)), remaining // divisor)
        packs, _ = _packed(classes, limits, items, 0, all_of_them=divisor == 1)
        if divisor > 1:
            packs = [pack for pack in packs if _fullness(classes, limits, pack) >= _GOOD]
        for pack in packs:
            patterns.append(_Pattern(pack, divisor, 0))
            np.subtract.at(remaining, pack, divisor)
    return patterns


def _packed(
    classes: SizeClasses, limits: PackLimits, items: Integers, first: int, *, all_of_them: bool
) -> tuple[list[Integers], Integers]:
    """Packs of items, given by class, and what is left over; the `first` of them are placed before the others."""
    packs: list[Integers] = []
    while len(items):
        tokens, text, ones = (each[items] for each in _takes(classes))
        num_packs = int(limits.packs_needed(int(tokens.sum()), int(text.sum()), int(ones.sum())))
        if num_packs == 0 and not all_of_them:
            break
        order = np.lexsort((-tokens, np.arange(len(items)) >= first))
        packing = pack_balanced(tokens, text, limits, max(1, num_packs), order)
        packing = Packing(equalise(packing.packs, tokens, text, limits), packing.left)
        packs += [items[pack] for pack in packing.packs]
        items, first = items[packing.left], 0
        if not all_of_them:
            break
    return packs, items


def _takes(classes: SizeClasses) -> tuple[Integers, Integers, Integers]:
    return classes.tokens, classes.text, np.ones_like(classes.tokens)


def _fullness(classes: SizeClasses, limits: PackLimits, pack: Integers) -> float:
    return limits.packs_needed(int(classes.tokens[pack].sum()), int(classes.text[pack].sum()), len(pack))
