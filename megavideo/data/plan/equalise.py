"""Exchanges between packs that level what their attention costs, without taking a token more."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megavideo.data.permutation import Integers, keys, mix, shuffled
from megavideo.data.plan.packing import PackLimits

Numbers = npt.NDArray[np.float64]

_MOVED = 8  # items of a pair of packs that may change sides
_SWEEPS = 16
_WORTH = 0.99  # a sweep that leaves more of the spread than this is the last
_LEVEL = 0.004  # packs whose sums of squares differ by less of the mean stay as they are
_BATCH = 512  # pairs looked at together
_WAYS = (np.arange(1 << _MOVED)[:, None] >> np.arange(_MOVED) & 1).astype(np.float64)  # [2^k, k]


def equalise(packs: list[list[int]], tokens: Integers, text: Integers, limits: PackLimits) -> list[list[int]]:
    """The same items in as many packs, whose sums of squared lengths differ less.

    Packs of the costlier half are paired with some of the cheaper half; a pair deals a few of its items anew, in that
    of all 2^k ways which fits and comes nearest to equal. Sums are of integers below 2^53, and so exact in floats.
    """
    state = _Rows(packs, tokens, text, limits)
    spread = np.inf
    for sweep in range(_SWEEPS):
        cost = state.takes[state.rows, 3].sum(axis=1)
        if cost.std() > _WORTH * spread:
            break
        spread = cost.std()
        order = np.argsort(cost, kind="stable")
        half = len(packs) // 2
        cheap, costly = order[:half][shuffled(half, keys(sweep))], order[::-1][:half]
        uneven = np.flatnonzero(cost[costly] - cost[cheap] > _LEVEL * cost.mean())
        for begin in range(0, len(uneven), _BATCH):
            some = uneven[begin : begin + _BATCH]
            state.deal(costly[some], cheap[some], sweep)
    return [[int(item) for item in row if item != state.none] for row in state.rows]


class _Rows:
    """Packs as rows [P, K] of item numbers, ended by `none`, and what each item takes [n + 1, 4].

    That is tokens, text, one segment, and the square of its tokens; `none` takes nothing.
    """

    def __init__(self, packs: list[list[int]], tokens: Integers, text: Integers, limits: PackLimits) -> None:
        self.none = len(tokens)
        width = min(limits.segments, max(len(pack) for pack in packs) + 2)
        takes = np.stack([tokens, text, np.ones(len(tokens)), tokens.astype(np.float64) ** 2], axis=1)
        self.takes = np.concatenate([takes, np.zeros((1, 4))])
        self._most = np.array([limits.tokens, limits.text_tokens, width], np.float64)
        self.rows = np.array([pack + [self.none] * (width - len(pack)) for pack in packs], np.int64)

    def deal(self, ones: Integers, others: Integers, salt: int) -> None:
        """Deal some items of each pair of packs anew."""
        both = np.concatenate([self.rows[ones], self.rows[others]], axis=1)  # [pairs, 2K]
        width = self.rows.shape[1]
        side = np.repeat([[0, 1]], width, axis=1).repeat(len(ones), axis=0)
        chance = mix(keys(salt) + (both * both.shape[0]).astype(np.uint64))
        chance[both == self.none] = np.iinfo(np.uint64).max
        moved = np.argsort(chance, axis=1, kind="stable")[:, :_MOVED]
        takes = self.takes[np.take_along_axis(both, moved, axis=1)]  # [pairs, k, 4]
        stays = self.takes[both]
        np.put_along_axis(stays, moved[:, :, None], 0.0, axis=1)
        given = np.matmul(_WAYS[:, : moved.shape[1]], takes)
        first = stays[:, :width].sum(axis=1)[:, None] + given
        second = stays[:, width:].sum(axis=1)[:, None] + takes.sum(axis=1)[:, None] - given
        fits = ((first[..., :3] <= self._most) & (second[..., :3] <= self._most)).all(axis=-1)
        uneven = np.where(fits, np.abs(first[..., 3] - second[..., 3]), np.inf)
        best = uneven.argmin(axis=1)  # the present way is among them, so that one fits
        np.put_along_axis(side, moved, 1 - _WAYS[best, : moved.shape[1]].astype(np.int64), axis=1)
        side[both == self.none] = 2
        self.rows[ones] = self._sorted_first(both, side != 0, width)
        self.rows[others] = self._sorted_first(both, side != 1, width)

    def _sorted_first(self, both: Integers, absent: npt.NDArray[np.bool_], width: int) -> Integers:
        order = np.argsort(absent, axis=1, kind="stable")[:, :width]
        items = np.take_along_axis(both, order, axis=1)
        return np.where(np.take_along_axis(absent, order, axis=1), self.none, items)
