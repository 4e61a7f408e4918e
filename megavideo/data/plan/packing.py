"""Sizes into packs: full in tokens, alike in attention, under budgets of video tokens, text tokens and segments."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megavideo.data.permutation import Integers

_TRIES = 16  # packs without room for an item's text that are passed over before it is left
_WIDEST = 1500  # items, of the packs with the widest gaps, among which gaps are moved
_EXCHANGES = 12  # for one item
_FAILURES = 4  # items that found no place before the rest is given up
_LITTLE = 0.014  # share of all tokens in gaps that is not worth moving them: each exchange makes attention less even


@dataclass(frozen=True)
class PackLimits:
    """Budgets of one pack. `min_text_tokens` is what a segment's text takes at least (a dropped caption's length)."""

    tokens: int
    text_tokens: int
    segments: int
    min_text_tokens: int = 1

    def text_need(self, text_tokens: int) -> int:
        """Text tokens to reserve: the caption or its replacement, whichever is longer."""
        return max(text_tokens, self.min_text_tokens)

    def takes(self, tokens: int, text_tokens: int) -> bool:
        """Whether one sample fits an empty pack."""
        return tokens <= self.tokens and self.text_need(text_tokens) <= self.text_tokens

    def packs_needed(self, tokens: int, text_tokens: int, segments: int) -> float:
        """Packs that so much takes at the least, by the budget that binds; not rounded."""
        return max(tokens / self.tokens, text_tokens / self.text_tokens, segments / self.segments)


@dataclass(frozen=True)
class Packing:
    """Items by number: those of each pack, and those left over."""

    packs: list[list[int]]
    left: list[int]


def pack_balanced(
    tokens: Integers, text: Integers, limits: PackLimits, num_packs: int, order: Integers | None = None
) -> Packing:
    """Items of `tokens` video and `text` reserved text tokens, both [n], into `num_packs` packs.

    Longest first (or in the given `order`), each into the pack with the smallest sum of squared lengths, which is what
    attention costs, among those with room: Graham's LPT rule under capacities. Short items come last and fill what is
    left, so packs end up equal in both. Gaps are then moved together until what is left over fits into them.
    """
    order = np.argsort(-tokens, kind="stable") if order is None else order
    state = _Packs(tokens.tolist(), text.tolist(), limits, num_packs)
    left = [item for item in order.tolist() if not state.place(item)]
    if left and num_packs > 1:
        left = close_gaps(state.packs, left, tokens, text, limits)
    return Packing([pack for pack in state.packs if pack], left)


class _Packs:
    """Packs in the making: a heap by cost of those that may have room, another by room of those that had too little.

    `parked` packs come back once an item is short enough, so that each item costs a few heap operations.
    """

    def __init__(self, tokens: list[int], text: list[int], limits: PackLimits, num_packs: int) -> None:
        self.packs: list[list[int]] = [[] for _ in range(num_packs)]
        self._tokens, self._text = tokens, text
        self._limits = limits
        self._room = [limits.tokens] * num_packs
        self._text_room = [limits.text_tokens] * num_packs
        self._least_text = min(text, default=0)
        self._open = [(0, number) for number in range(num_packs)]  # (sum of squares, pack)
        self._parked: list[tuple[int, int, int]] = []  # (-room, sum of squares, pack)

    def place(self, item: int) -> bool:
        """Put an item into a pack; False where none has room."""
        need = self._tokens[item]
        while self._parked and -self._parked[0][0] >= need:
            _, cost, number = heapq.heappop(self._parked)
            heapq.heappush(self._open, (cost, number))
        passed_over: list[tuple[int, int]] = []
        placed = False
        while self._open and not placed and len(passed_over) < _TRIES:
            cost, number = heapq.heappop(self._open)
            if self._room[number] < need:
                heapq.heappush(self._parked, (-self._room[number], cost, number))
            elif self._text_room[number] < self._text[item]:
                passed_over.append((cost, number))
            else:
                self._add(item, number, cost + need * need)
                placed = True
        for entry in passed_over:
            heapq.heappush(self._open, entry)
        return placed

    def _add(self, item: int, number: int, cost: int) -> None:
        self.packs[number].append(item)
        self._room[number] -= self._tokens[item]
        self._text_room[number] -= self._text[item]
        full = len(self.packs[number]) == self._limits.segments
        if not full and self._room[number] > 0 and self._text_room[number] >= self._least_text:
            heapq.heappush(self._open, (cost, number))


def close_gaps(
    packs: list[list[int]], left: Sequence[int], tokens: Integers, text: Integers, limits: PackLimits
) -> list[int]:
    """Place items of `left` into `packs`, in place, by exchanges that move gaps together; what is still left.

    An exchange takes an item from one pack and gives it a shorter one of another, whose gap the longer one fills; of
    those that help, the one that moves the least attention for what it helps.
    """
    remaining = sorted(left, key=lambda item: (int(tokens[item]), item))
    enough = _LITTLE * limits.tokens * len(packs)
    progress = True
    while progress and remaining:
        progress = False
        gaps = _Gaps(packs, tokens, text, limits)
        failed: list[int] = []
        for position, item in enumerate(remaining):
            if gaps.total < max(enough, int(tokens[item])):
                return failed + remaining[position:]
            if len(failed) == _FAILURES:
                failed += remaining[position:]
                break
            if gaps.insert(item):
                progress = True
            else:
                failed.append(item)
        remaining = failed
    return remaining


class _Gaps:
    """The packs with the widest gaps as columns, so that every exchange with one of them is looked at at once."""

    def __init__(self, packs: list[list[int]], tokens: Integers, text: Integers, limits: PackLimits) -> None:
        gap = limits.tokens - np.array([int(tokens[pack].sum()) for pack in packs], np.int64)
        widest = np.argsort(-gap, kind="stable")
        chosen = widest[np.cumsum([len(packs[number]) for number in widest.tolist()]) <= _WIDEST]
        self._packs = [packs[number] for number in chosen.tolist()]
        self._gap = gap[chosen]
        self._other_gaps = int(gap.sum() - self._gap.sum())
        self._text_gap = limits.text_tokens - np.array([int(text[pack].sum()) for pack in self._packs], np.int64)
        self._tokens, self._text, self._segments = tokens, text, limits.segments

    @property
    def total(self) -> int:
        """Tokens that the gaps of all packs take together."""
        return int(self._gap.sum()) + self._other_gaps

    def insert(self, item: int) -> bool:
        """Put an item into the pack with the widest gap, after as many exchanges as that takes."""
        if not self._packs:  # each holds so many items that another one makes no difference
            return False
        here, need = int(np.argmax(self._gap)), int(self._tokens[item])
        for _ in range(_EXCHANGES):
            if self._gap[here] >= need or not self._widen(here, need):
                break
        room = self._gap[here] >= need and self._text_gap[here] >= self._text[item]
        if not room or len(self._packs[here]) >= self._segments:
            return False
        self._packs[here].append(item)
        self._gap[here] -= need
        self._text_gap[here] -= self._text[item]
        return True

    def _widen(self, here: int, need: int) -> bool:
        """Make the best exchange for a gap of `need` in the pack `here`; False where none is legal."""
        theirs = np.array([item for pack in self._packs for item in pack], np.int64)
        owner = np.repeat(np.arange(len(self._packs)), [len(pack) for pack in self._packs])
        mine = np.array(self._packs[here], np.int64)
        moved = self._tokens[mine][:, None] - self._tokens[theirs]
        text = self._text[mine][:, None] - self._text[theirs]
        legal = (moved > 0) & (moved <= self._gap[owner]) & (owner != here)
        legal &= (text <= self._text_gap[owner]) & (-text <= self._text_gap[here])
        if not legal.any():
            return False
        # the attention that changes sides, for each token of gap gained that is of use
        useful = np.minimum(moved, need - self._gap[here])
        price = moved * (self._tokens[mine][:, None] + self._tokens[theirs]) / np.where(legal, useful, 1.0) ** 2
        best = int(np.where(legal, price, np.inf).argmin())
        give, take = int(mine[best // len(theirs)]), int(theirs[best % len(theirs)])
        there = int(owner[best % len(theirs)])
        self._packs[here][self._packs[here].index(give)] = take
        self._packs[there][self._packs[there].index(take)] = give
        for number, sign in ((here, 1), (there, -1)):
            self._gap[number] += sign * int(self._tokens[give] - self._tokens[take])
            self._text_gap[number] += sign * int(self._text[give] - self._text[take])
        return True
