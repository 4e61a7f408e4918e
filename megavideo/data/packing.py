"""Samples into packs: best fit, largest first, under a budget of video tokens, text tokens and segments."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from megavideo.types import PackSegment


@dataclass(frozen=True)
class PackLimits:
    """Budgets of one pack. `min_text_tokens` is what a segment's text takes at least (a dropped caption's length)."""

    tokens: int
    text_tokens: int
    segments: int
    min_text_tokens: int = 1

    def text_need(self, segment: PackSegment) -> int:
        """Text tokens to reserve: the caption or its replacement, whichever is longer."""
        return max(segment.text_tokens, self.min_text_tokens)


class _Pack:
    def __init__(self) -> None:
        self.segments: list[PackSegment] = []
        self.tokens = 0
        self.text_tokens = 0

    def takes(self, segment: PackSegment, limits: PackLimits) -> bool:
        return (
            self.tokens + segment.grid.num_tokens <= limits.tokens
            and self.text_tokens + limits.text_need(segment) <= limits.text_tokens
            and len(self.segments) < limits.segments
        )

    def add(self, segment: PackSegment, limits: PackLimits) -> None:
        self.segments.append(segment)
        self.tokens += segment.grid.num_tokens
        self.text_tokens += limits.text_need(segment)


def pack_window(segments: Iterable[PackSegment], limits: PackLimits) -> list[tuple[PackSegment, ...]]:
    """Packs of one window of samples, each of which must fit by itself.

    Best-fit decreasing: a sample goes into the fullest open pack that takes it. Ties keep the given order.
    """
    open_packs: list[tuple[int, int, _Pack]] = []  # (free tokens, serial, pack), ascending
    closed: list[_Pack] = []
    serial = 0
    ordered = sorted(segments, key=lambda segment: -segment.grid.num_tokens)
    smallest = ordered[-1].grid.num_tokens if ordered else 0
    for segment in ordered:
        need = segment.grid.num_tokens
        position = bisect.bisect_left(open_packs, (need, -1))
        while position < len(open_packs) and not open_packs[position][2].takes(segment, limits):
            position += 1
        if position < len(open_packs):
            _, number, pack = open_packs.pop(position)
        else:
            serial, number, pack = serial + 1, serial, _Pack()
        pack.add(segment, limits)
        free = limits.tokens - pack.tokens
        if free < smallest or len(pack.segments) == limits.segments:
            closed.append(pack)
        else:
            bisect.insort(open_packs, (free, number, pack))
    packs = closed + [pack for _, _, pack in open_packs]
    return [tuple(pack.segments) for pack in packs]


def fits(segment: PackSegment, limits: PackLimits) -> bool:
    """Whether a sample fits an empty pack."""
    return _Pack().takes(segment, limits)


def fill(packs: Sequence[Sequence[PackSegment]], limits: PackLimits) -> float:
    """Share of the packs' video tokens that is real."""
    if not packs:
        return 0.0
    return sum(s.grid.num_tokens for pack in packs for s in pack) / (len(packs) * limits.tokens)
