"""From units that are done to a version of the dataset: what was there stays first, what is new follows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from megavideo.data.dataset.dataset import (
    FORMAT,
    NULL_TEXT_NAME,
    DatasetInfo,
    DroppedClip,
    checksum,
    manifest_line,
    parse_info,
    version_name,
)
from megavideo.data.storage.protocol import Storage
from megavideo.encoders.encode.dataset_place import Place
from megavideo.encoders.encode.dataset_writer import point_to, publish_version
from megavideo.encoders.encode.unit import UnitRecord, read_record
from megavideo.encoders.encode.work_units import SHARDS_PREFIX, WorkUnit, plan_number
from megavideo.errors import DataError

_VERSION = re.compile(r"dataset_v(\d+)\.json")
_READERS = 16


@dataclass(frozen=True)
class Version:
    """A published version: its description, the entries of its index and its manifest."""

    info: DatasetInfo
    shards: list[dict[str, Any]]
    manifest: bytes


def newest_version(storage: Storage) -> Version | None:
    """The newest published version, None where there is none; DataError where its files are damaged.

    Where whoever published it was stopped just before `dataset.json` pointed to it, it does so now.
    """
    numbers = [int(match[1]) for name in storage.list("dataset_v") if (match := _VERSION.fullmatch(name))]
    if not numbers:
        return None
    name = version_name(max(numbers))
    info = parse_info(storage.uri, storage.read_bytes(name), name)
    index, manifest = (_checked(storage, info, name) for name in (info.index_name, info.manifest_name))
    point_to(storage, info.version)
    return Version(info, json.loads(index)["shards"], manifest)


def read_records(storage: Storage, units: Sequence[WorkUnit], key: str) -> tuple[list[UnitRecord], list[WorkUnit]]:
    """What became of units that are done, in order, and those of them that are to be done again."""
    with ThreadPoolExecutor(_READERS) as pool:
        records = list(pool.map(lambda unit: read_record(storage, unit, key), units))
    bad = [unit for unit, record in zip(units, records, strict=True) if record is None]
    return [record for record in records if record is not None], bad


def publish_units(
    place: Place, before: Version | None, records: Sequence[UnitRecord], unfit: Iterable[DroppedClip], num_plans: int
) -> DatasetInfo | None:
    """Publish the version after `before` with the samples of `records`; None where these hold none.

    `unfit` are clips that could not even be planned. Raises DataError where a sample would be there twice.
    """
    num_before = before.info.num_samples if before else 0
    rows = [row for record in records for row in record.rows]
    if not rows:
        return None
    lines = [manifest_line({**row, "index": num_before + number}) for number, row in enumerate(rows)]
    manifest = (before.manifest if before else b"") + "".join(lines).encode("utf-8")
    shards = [*(before.shards if before else []), *(shard for record in records for shard in record.shards)]
    ids = _check_once(place.storage, manifest)
    dropped = [*(before.info.dropped if before else ()), *unfit]
    dropped += [clip for record in records for clip in record.dropped]
    errors = [error for record in records for error in record.squared_errors]
    psnr_db, psnr_clips = _psnr(before, errors)
    info = DatasetInfo(
        format=FORMAT,
        num_samples=len(ids),
        latent_channels=place.latent_channels,
        text_dim=place.text_dim,
        patch=place.patch,
        time_ratio=place.time_ratio,
        space_ratio=place.space_ratio,
        dropped=tuple(clip for clip in dict.fromkeys(dropped) if clip.clip_id not in ids),
        captions_cut=(before.info.captions_cut if before else 0) + sum(record.captions_cut for record in records),
        checksums={NULL_TEXT_NAME: place.null_text_checksum},
        version=before.info.version + 1 if before else 1,
        num_plans=num_plans,
        num_bytes=sum(int(shard["raw_data"]["bytes"]) for shard in shards) + len(manifest),
        psnr_db=psnr_db,
        psnr_clips=psnr_clips,
    )
    return publish_version(place.storage, info, shards, manifest)


def clean(storage: Storage, shards: Iterable[dict[str, Any]], num_plans: int) -> None:
    """Delete shards of done lists that `shards` of the newest version does not name: of attempts that were stopped."""
    kept = {shard["raw_data"]["basename"] for shard in shards}
    for name in storage.list(SHARDS_PREFIX):
        if name not in kept and 0 <= plan_number(name) < num_plans:
            storage.delete(name)


def _check_once(storage: Storage, manifest: bytes) -> set[str]:
    ids: set[str] = set()
    for line in manifest.splitlines():
        sample_id = json.loads(line)["sample_id"]
        if sample_id in ids:
            raise DataError(
                f"{storage.uri}: sample {sample_id} was planned twice, by tasks that were given different lists of "
                "clips at the same time. Remedy: encode again with overwrite=true, with one list for all tasks"
            )
        ids.add(sample_id)
    return ids


def _psnr(before: Version | None, errors: Sequence[float]) -> tuple[float | None, int]:
    """Mean over all measured clips; videos span -1..1, so that the peak is 2."""
    total, count = float(np.sum(errors)), len(errors)
    if before and before.info.psnr_db is not None:
        total += before.info.psnr_clips * 4.0 / 10.0 ** (before.info.psnr_db / 10.0)
        count += before.info.psnr_clips
    if not count:
        return None, 0
    return round(10.0 * float(np.log10(4.0 / max(total / count, 1e-12))), 2), count


def _checked(storage: Storage, info: DatasetInfo, name: str) -> bytes:
    data = storage.read_bytes(name)
    if checksum(data) != info.checksums.get(name):
        raise DataError(
            f"{storage.uri}/{name}: damaged (its checksum is not the one in {version_name(info.version)}). "
            "Remedy: restore it from a copy, or encode again with overwrite=true"
        )
    return data
