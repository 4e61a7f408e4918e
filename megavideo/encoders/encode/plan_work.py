"""What there is to do for a list of clips: the plans that there are, and a further one for clips that none has yet.

A plan is a function of the list and the plans before it: tasks that start together write the same. The first that has
written it saves the others the work: a list that the open plans were made from is not compared with them again.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from megavideo.border.json_text import parse_json
from megavideo.border.refused import Refused
from megavideo.data.ingest import ClipFile, parse_row
from megavideo.data.storage.protocol import Storage
from megavideo.encoders.encode.plan import Plan, read_page, read_plans, write_plan
from megavideo.encoders.encode.sorted_rows import order_key, sorted_rows
from megavideo.encoders.encode.work_units import WorkUnit
from megavideo.errors import DataError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkOrder:
    """What is to be planned: a list, in units of `unit_clips`, and clips that failed in a plan that is done.

    The plans before `num_done` are done: what came of them is published. Clips of the ids `again` are taken up once
    more. `folder` is a local one for what memory may not hold.
    """

    listed: ClipFile
    unit_clips: int
    num_done: int
    again: frozenset[str]
    folder: Path


@dataclass(frozen=True)
class PlannedWork:
    """All plans, and of open units the clips that are listed no more, by the unit's name."""

    plans: list[Plan]
    unlisted: dict[str, frozenset[str]]


@dataclass(frozen=True)
class _Planned:
    """A row of a plan; `unit` is its unit where the plan is open."""

    key: bytes
    clip_id: str
    line: bytes
    plan: int
    unit: WorkUnit | None


@dataclass
class _Difference:
    """What a comparison found: rows that no plan has yet, in a file, and clips of open units that the list lacks."""

    new: BinaryIO
    num_new: int = 0
    num_changed: int = 0
    unlisted: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def plan_work(storage: Storage, order: WorkOrder) -> PlannedWork:
    """The plans, after a further one is written for what none has yet.

    Raises DataError where the list or a plan is damaged.
    """
    plans = read_plans(storage)
    source = order.listed.digest(), _digest(order.again)
    if _is_planned(plans, order.num_done, source):
        return PlannedWork(plans, {})
    if plans:
        _log.info("encode: the list of clips is not the one that was planned; they are compared")
    try:
        with tempfile.TemporaryFile(dir=order.folder) as new:
            found = _compare(storage, plans, order, new)
            if found.num_changed:
                _log.warning(
                    "encode: %d clips were listed otherwise when they were planned, and stay as they are",
                    found.num_changed,
                )
            if found.num_new:
                new.seek(0)
                plans.append(write_plan(storage, len(plans), new, source, (found.num_new, order.unit_clips)))
    except OSError as error:
        raise DataError(f"{order.folder}: cannot be written ({error.strerror}). Remedy: check free space") from error
    return PlannedWork(plans, {name: frozenset(ids) for name, ids in found.unlisted.items()})


def _is_planned(plans: Sequence[Plan], num_done: int, source: tuple[str, str]) -> bool:
    """True where every clip of the list is planned, and the open plans hold no other."""
    listed, again = source
    open_plans = plans[num_done:]
    tried = not again or any(plan.again == again for plan in open_plans)
    return bool(plans) and tried and all(plan.listed == listed for plan in open_plans or plans[-1:])


def _compare(storage: Storage, plans: Sequence[Plan], order: WorkOrder, new: BinaryIO) -> _Difference:
    """Compare the list with all plans, both in the order of the same hash; nothing but a page of each is in memory."""
    found = _Difference(new)
    planned = groupby(
        heapq.merge(*(_rows(storage, plan, order.num_done) for plan in plans), key=lambda row: row.key),
        key=lambda row: row.key,
    )
    ahead = _following(planned)
    for key, clip_id, line in sorted_rows(order.listed, order.folder):
        while ahead is not None and ahead[0].key < key:
            _note_unlisted(ahead, found)
            ahead = _following(planned)
        known = ahead if ahead is not None and ahead[0].key == key else []
        if not known or (clip_id in order.again and known[-1].plan < order.num_done):
            new.write(line)
            found.num_new += 1
        if known:
            found.num_changed += _differ(known[-1].line, line)
            ahead = _following(planned)
    while ahead is not None:
        _note_unlisted(ahead, found)
        ahead = _following(planned)
    return found


def _following(planned: Iterator[tuple[bytes, Iterator[_Planned]]]) -> list[_Planned] | None:
    """The rows of the next clip that is planned, of the last plan last."""
    for _, rows in planned:
        return sorted(rows, key=lambda row: row.plan)
    return None


def _note_unlisted(rows: Sequence[_Planned], found: _Difference) -> None:
    for row in rows:
        if row.unit is not None:
            found.unlisted[row.unit.name].add(row.clip_id)


def _rows(storage: Storage, plan: Plan, num_done: int) -> Iterator[_Planned]:
    units = plan.units() if plan.number >= num_done else None
    for name in plan.page_names():
        lines = read_page(storage, name)
        for begin in range(0, len(lines), plan.unit_clips):
            unit = None if units is None else next(units)
            for line in lines[begin : begin + plan.unit_clips]:
                clip_id = _clip_id(storage, name, line)
                yield _Planned(order_key(clip_id), clip_id, line, plan.number, unit)


def _differ(first: bytes, second: bytes) -> bool:
    """True where two lines say different things."""
    return first != second and parse_row(first) != parse_row(second)


@dataclass(frozen=True)
class _Listed:
    clip_id: str


def _clip_id(storage: Storage, page: str, line: bytes) -> str:
    try:
        return parse_json(line, _Listed).clip_id
    except Refused as error:
        raise DataError(f"{storage.uri}/{page}: damaged ({error}). Remedy: encode again with overwrite=true") from error


def _digest(again: frozenset[str]) -> str:
    return hashlib.sha256("\n".join(sorted(again)).encode()).hexdigest() if again else ""
