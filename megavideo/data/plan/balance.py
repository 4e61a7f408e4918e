"""Packs of a step to data-parallel ranks: as many for each, of costs that sum to nearly the same."""

from __future__ import annotations

from collections.abc import Sequence


def shares(cost: Sequence[int], dp_size: int) -> list[list[int]]:
    """Numbers of the packs of each rank, the costliest first; `dp_size` divides how many there are.

    Costliest first, each to the rank with the least so far that still takes one (Graham's LPT with equal counts): so
    the ranks' n-th packs cost nearly the same too, and wait little for each other within a step.
    """
    each = len(cost) // dp_size
    ranks: list[list[int]] = [[] for _ in range(dp_size)]
    total = [0] * dp_size
    for number in sorted(range(len(cost)), key=lambda n: (-cost[n], n)):
        rank = min((r for r in range(dp_size) if len(ranks[r]) < each), key=lambda r: (total[r], r))
        ranks[rank].append(number)
        total[rank] += cost[number]
    return ranks
