"""The plan read ahead, so that the shards of coming steps are fetched while this one is made and trained."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from megavideo.data.stream.shards import ShardReader
from megavideo.types import PackSegment

Packs = list[tuple[PackSegment, ...]]

# Beyond this a look ahead costs memory and no longer helps: a worker that has nothing to fetch for so many steps idles.
_MOST_STEPS = 32


def planned_ahead(
    plan: Callable[[int], Packs], mine: Callable[[Packs], Packs], reader: ShardReader, begin: int, end: int
) -> Iterator[tuple[int, Packs]]:
    """Steps [begin, end) with their packs; `reader` is told of the samples of `mine` as far ahead as it can use.

    Each step is planned once.
    """
    ahead: deque[tuple[int, Packs]] = deque()
    next_step = begin
    for _ in range(begin, end):
        while next_step < end and (not ahead or (reader.wants_more and len(ahead) < _MOST_STEPS)):
            packs = plan(next_step)
            reader.expect(segment.index for pack in mine(packs) for segment in pack)
            ahead.append((next_step, packs))
            next_step += 1
        yield ahead.popleft()
