"""A plan: clips divided into units of work, in files that are written once and never changed.

`plans/plan_00000.json` is the head: a few numbers and the hash of each page. A page, `plans/plan_00000/` its number and
hash, holds the rows of some units as lines of `clips.jsonl`, in the order of a hash of their ids, so that units cost
alike. All names of units follow from the head alone, and a process reads the pages of the units that it encodes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from megavideo.border.fields import Count, Size
from megavideo.border.json_text import parse_json
from megavideo.border.refused import Refused
from megavideo.data.ingest import ClipRow, parse_row
from megavideo.data.storage.protocol import Storage
from megavideo.encoders.encode.work_units import WorkUnit, unit_name
from megavideo.errors import DataError

PLANS_PREFIX = "plans/"
_HEAD = re.compile(r"plans/plan_(\d{5,})\.json")
_FORMAT = 2
_DIGEST_DIGITS = 16
_MOST_PAGES = 1 << 14  # a head of some 300 kB; up to so many units, each is a page


@dataclass(frozen=True)
class Plan:
    """The head of a plan.

    `listed` is the digest of the list of clips that it was made from, `again` that of the ids of failed clips that were
    taken up once more (empty without any). Each unit has `unit_clips` clips and each page `page_units` units, the last
    one what is left; `pages` are the pages' hashes.
    """

    listed: str
    again: str
    num_clips: Count
    unit_clips: Size
    page_units: Size
    pages: tuple[str, ...]
    number: int = 0

    @property
    def num_units(self) -> int:
        """Units of all its clips."""
        return -(-self.num_clips // self.unit_clips)

    def units(self) -> Iterator[WorkUnit]:
        """All units in order."""
        for position, begin in enumerate(range(0, self.num_clips, self.unit_clips)):
            number, place = divmod(position, self.page_units)
            digest = self.pages[number]
            yield WorkUnit(
                name=unit_name(self.number, position, digest),
                plan=self.number,
                position=position,
                page_number=number,
                page=page_name(self.number, number, digest),
                first_row=place * self.unit_clips,
                num_clips=min(self.unit_clips, self.num_clips - begin),
            )

    @property
    def pages_prefix(self) -> str:
        """What the names of its pages begin with."""
        return _pages_prefix(self.number)

    def page_names(self) -> Iterator[str]:
        """The files of its pages in order."""
        return (page_name(self.number, number, digest) for number, digest in enumerate(self.pages))


def page_name(plan: int, number: int, digest: str) -> str:
    """The file of a page."""
    return f"{_pages_prefix(plan)}{number:05d}-{digest}.jsonl"


def head_name(plan: int) -> str:
    """The file of a head."""
    return f"{PLANS_PREFIX}plan_{plan:05d}.json"


def read_plans(storage: Storage) -> list[Plan]:
    """The heads of all plans, in order; DataError where one is damaged or of another format."""
    numbers = sorted(int(found[1]) for name in storage.list(f"{PLANS_PREFIX}plan_") if (found := _HEAD.fullmatch(name)))
    return [read_plan(storage, number) for number in numbers]


def read_plan(storage: Storage, number: int) -> Plan:
    """The head of a plan; DataError where it is damaged or of another format."""
    name = head_name(number)
    try:
        content = storage.read_bytes(name)
        written_as = parse_json(content, _Format).format
        if written_as != _FORMAT:
            raise DataError(
                f"{storage.uri}/{name}: a plan of format {written_as}, and this version of megavideo reads "
                f"{_FORMAT}. Remedy: give another out=, or overwrite=true to encode anew; what is published can be "
                "trained on as it is"
            )
        plan = replace(parse_json(content, Plan), number=number)
        if len(plan.pages) != -(-plan.num_units // plan.page_units):
            raise Refused(f"{len(plan.pages)} pages for {plan.num_units} units")
    except Refused as error:
        raise _damaged(storage, name, error) from error
    return plan


def write_plan(
    storage: Storage, number: int, lines: Iterable[bytes], source: tuple[str, str], sizes: tuple[int, int]
) -> Plan:
    """Write a plan of the rows `lines`, the head last, and give the one that counts, if another task wrote it too.

    `source` are the digests of list and of clips tried again, `sizes` the numbers of clips in all and in a unit.
    """
    num_clips, unit_clips = sizes
    page_units = max(1, -(-num_clips // (unit_clips * _MOST_PAGES)))
    rest, pages = iter(lines), []
    written = set(storage.list(_pages_prefix(number)))
    while page := b"".join(islice(rest, page_units * unit_clips)):
        pages.append(_digest(page))
        name = page_name(number, len(pages) - 1, pages[-1])
        if name not in written:  # by another task, or by one that was stopped
            storage.write_bytes(name, page)
    head = {
        "format": _FORMAT, "listed": source[0], "again": source[1], "num_clips": num_clips, "unit_clips": unit_clips,
        "page_units": page_units, "pages": pages,
    }  # fmt: skip
    storage.write_bytes(head_name(number), json.dumps(head).encode())
    return read_plan(storage, number)


class PageReader:
    """Reads the clips of units, a page at a time: units of one page that follow each other read it once."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._name = ""
        self._lines: list[bytes] = []

    def rows(self, unit: WorkUnit) -> list[ClipRow]:
        """The clips of a unit; DataError where the page is damaged."""
        if unit.page != self._name:
            self._lines = list(read_page(self._storage, unit.page))
            self._name = unit.page
        lines = self._lines[unit.first_row : unit.first_row + unit.num_clips]
        if len(lines) != unit.num_clips:
            raise _damaged(self._storage, unit.page, f"{len(lines)} clips for {unit.num_clips} of unit {unit.name}")
        return [self._row(unit, line) for line in lines]

    def _row(self, unit: WorkUnit, line: bytes) -> ClipRow:
        try:
            return parse_row(line)
        except Refused as error:
            raise _damaged(self._storage, unit.page, error) from error


def read_page(storage: Storage, name: str) -> list[bytes]:
    """The lines of a page; DataError where it is not what it was when it was written."""
    data = storage.read_bytes(name)
    if _digest(data) != name.rpartition("-")[2].removesuffix(".jsonl"):
        raise _damaged(storage, name, "its hash is not the one in its name")
    return data.splitlines(keepends=True)


@dataclass(frozen=True)
class _Format:
    format: int


def _pages_prefix(plan: int) -> str:
    return f"{PLANS_PREFIX}plan_{plan:05d}/"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGEST_DIGITS]


def _damaged(storage: Storage, name: str, reason: object) -> DataError:
    return DataError(f"{storage.uri}/{name}: damaged ({reason}). Remedy: encode again with overwrite=true")
