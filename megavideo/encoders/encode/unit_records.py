"""What became of very many units, read some hundreds at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from megavideo.data.storage.protocol import Storage
from megavideo.encoders.encode.unit import UnitRecord, read_record
from megavideo.encoders.encode.work_units import WorkUnit

_READERS = 16
_AT_A_TIME = 128  # records in memory


def read_records(storage: Storage, units: Sequence[WorkUnit], key: str) -> Iterator[tuple[WorkUnit, UnitRecord | None]]:
    """Each unit that is done, in order, with what became of it; None for one that is to be done again."""
    with ThreadPoolExecutor(_READERS) as pool:
        for begin in range(0, len(units), _AT_A_TIME):
            some = units[begin : begin + _AT_A_TIME]
            yield from zip(some, pool.map(lambda unit: read_record(storage, unit, key), some), strict=True)
