from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from megavideo.train.packs.look_ahead import planned_ahead
from megavideo.types import Grid, PackSegment


class _Reader:
    """Wants more until it was told of so many samples beyond those that were read."""

    def __init__(self, appetite: int) -> None:
        self.appetite = appetite
        self.told: list[int] = []

    @property
    def wants_more(self) -> bool:
        return self.appetite > 0

    def expect(self, indices: Iterable[int]) -> None:
        indices = list(indices)
        self.appetite -= len(indices)
        self.told += indices


def steps(reader: Any, begin: int, end: int) -> tuple[list[int], list[int], list[int]]:
    """Steps as given, steps as planned, and how many samples the reader knew of at each step."""
    planned: list[int] = []

    def plan(step: int) -> Any:
        planned.append(step)
        return [(PackSegment(2 * step + i, "", 0, Grid(1, 1, 1), 1),) for i in range(2)]

    given, known = [], []
    for step, packs in planned_ahead(plan, lambda packs: packs[:1], reader, begin, end):
        assert [pack[0].index for pack in packs] == [2 * step, 2 * step + 1]
        given.append(step)
        known.append(len(reader.told))
    return given, planned, known


def test_each_step_is_planned_once_and_the_reader_is_told_of_its_share() -> None:
    reader = _Reader(4)
    given, planned, known = steps(reader, 3, 10)
    assert given == planned == list(range(3, 10))
    assert reader.told == [2 * step for step in given]
    assert known == [4, 4, 4, 4, 5, 6, 7]


def test_without_appetite_nothing_is_planned_ahead_and_with_much_not_for_ever() -> None:
    assert steps(_Reader(0), 0, 5)[2] == [1, 2, 3, 4, 5]
    assert max(steps(_Reader(10**6), 0, 100)[2][:1]) == 32
