"""Units of work: which clips are encoded together, and what the files of a unit are called."""

from __future__ import annotations

from dataclasses import dataclass

UNITS_PREFIX = "units/"
SHARDS_PREFIX = "shards/"


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Clips that one process encodes into shards of their own: `num_clips` rows from `first_row` of a page of a plan.

    `plan` is the number of the plan, `position` the unit's place in it and `page_number` its page's, which lies in
    `page`; `name` tells plan, place and what the page holds. There may be very many units, and none holds its clips.
    """

    name: str
    plan: int
    position: int
    page_number: int
    page: str
    first_row: int
    num_clips: int

    @property
    def file(self) -> str:
        """What is written last: where it is, the unit is done."""
        return f"{UNITS_PREFIX}{self.name}.json"


def unit_name(plan: int, position: int, page_digest: str) -> str:
    """The name of a unit."""
    return f"{plan:05d}-{position:06d}-{page_digest}"


def plan_number(name: str) -> int:
    """Number of the plan that a unit, its file or one of its shards comes from; -1 for other names."""
    number = name.rpartition("/")[2].partition("-")[0]
    return int(number) if number.isdecimal() else -1
