"""Units of work: which clips are encoded together, fixed by lists that are written once and only ever added to.

A list (`plans/plan_00000.json`) divides the clips that no earlier list has, in the order of a hash of their ids, so
that units cost alike. It is a function of the clips and the earlier lists: tasks that start together write the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from megavideo.data.storage.protocol import Storage
from megavideo.encoders.encode.clips import PlannedClip
from megavideo.errors import DataError

PLANS_PREFIX = "plans/"
UNITS_PREFIX = "units/"
SHARDS_PREFIX = "shards/"
_FORMAT = 1
_DIGEST_DIGITS = 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkUnit:
    """Clips (id and digest of the row that was planned) that one process encodes into shards of their own.

    `plan` is the number of its list and `position` its place there; `name` tells both and what it holds.
    """

    name: str
    plan: int
    position: int
    clips: tuple[tuple[str, str], ...]

    @property
    def file(self) -> str:
        """What is written last: where it is, the unit is done."""
        return f"{UNITS_PREFIX}{self.name}.json"


def plan_number(name: str) -> int:
    """Number of the list that a unit, its file or one of its shards comes from; -1 for other names."""
    number = name.rpartition("/")[2].partition("-")[0]
    return int(number) if number.isdecimal() else -1


def plan_work(
    storage: Storage, planned: Sequence[PlannedClip], num_clips: int, again: frozenset[str]
) -> list[WorkUnit]:
    """All units, after adding a list of units of `num_clips` clips for what no list has yet.

    Clips of the ids `again`, which failed in a list that is done, are taken up once more.
    """
    units: list[WorkUnit] = []
    names = storage.list(PLANS_PREFIX)
    for number, name in enumerate(names):
        units += _read_plan(storage, name, number)
    known = {clip_id: digest for unit in units for clip_id, digest in unit.clips}
    digests = {clip.row.clip_id: _digest(clip) for clip in planned}
    changed = sum(known.get(clip_id, digest) != digest for clip_id, digest in digests.items())
    if changed:
        _log.warning("encode: %d clips were listed otherwise when they were planned, and stay as they are", changed)
    new = [(clip_id, digest) for clip_id, digest in digests.items() if clip_id not in known or clip_id in again]
    if not new:
        return units
    new.sort(key=lambda clip: hashlib.sha256(clip[0].encode()).digest())
    chunks = [new[begin : begin + num_clips] for begin in range(0, len(new), num_clips)]
    name = f"{PLANS_PREFIX}plan_{len(names):05d}.json"
    storage.write_bytes(name, json.dumps({"format": _FORMAT, "units": chunks}).encode())
    return units + _read_plan(storage, name, len(names))  # what another task has written meanwhile counts


def _read_plan(storage: Storage, name: str, number: int) -> list[WorkUnit]:
    try:
        value = json.loads(storage.read_bytes(name))
        if value["format"] != _FORMAT:
            raise ValueError(f"format {value['format']}, and this version reads {_FORMAT}")
        chunks = [tuple((str(clip_id), str(digest)) for clip_id, digest in chunk) for chunk in value["units"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{storage.uri}/{name}: damaged ({error}). Remedy: encode again with overwrite=true") from error
    return [WorkUnit(_name(number, position, clips), number, position, clips) for position, clips in enumerate(chunks)]


def _name(plan: int, position: int, clips: tuple[tuple[str, str], ...]) -> str:
    digest = hashlib.sha256(json.dumps(clips).encode()).hexdigest()[:_DIGEST_DIGITS]
    return f"{plan:05d}-{position:06d}-{digest}"


def _digest(clip: PlannedClip) -> str:
    row = json.dumps(asdict(clip.row), sort_keys=True).encode()
    return hashlib.sha256(row).hexdigest()[:_DIGEST_DIGITS]
