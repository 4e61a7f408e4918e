"""From units that are done to a version of the dataset: what was there stays first, what is new follows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megavideo.data.dataset.dataset import (
    FORMAT,
    NULL_TEXT_NAME,
    DatasetInfo,
    DroppedClip,
    checksum,
    parse_info,
    version_name,
)
from megavideo.data.dataset.index import ShardEntry, parse_index
from megavideo.data.dataset.rates import NOT_COUNTED, FrameCounts
from megavideo.data.storage.protocol import Storage
from megavideo.encoders.encode.dataset_place import Place
from megavideo.encoders.encode.dataset_writer import point_to, publish_version
from megavideo.encoders.encode.manifest_file import ManifestFile
from megavideo.encoders.encode.plan import Plan
from megavideo.encoders.encode.unit import UnitRecord
from megavideo.encoders.encode.unit_records import read_records
from megavideo.encoders.encode.work_units import SHARDS_PREFIX, WorkUnit, plan_number
from megavideo.errors import DataError

_VERSION = re.compile(r"dataset_v(\d+)\.json")


@dataclass(frozen=True)
class Version:
    """A published version: its description and the entries of its index."""

    info: DatasetInfo
    shards: list[ShardEntry]


@dataclass
class Gathered:
    """What becomes of done units: the manifest as it will be, entries of shards, what was dropped, and sums.

    `redo` are units that are to be done again; where there are any, the rest is not whole.
    """

    manifest: ManifestFile
    shards: list[ShardEntry]
    dropped: list[DroppedClip] = field(default_factory=list)
    captions_cut: int = 0
    squared_errors: list[float] = field(default_factory=list)
    frames: FrameCounts = NOT_COUNTED
    redo: list[WorkUnit] = field(default_factory=list)

    def add(self, record: UnitRecord) -> None:
        """Add what became of a unit."""
        self.manifest.add(record.rows)
        self.shards += record.shards
        self.dropped += record.dropped
        self.captions_cut += record.captions_cut
        self.squared_errors += record.squared_errors
        self.frames = self.frames.with_rows(record.rows)


def newest_version(storage: Storage) -> Version | None:
    """The newest published version, None where there is none; DataError where its files are damaged.

    Where whoever published it was stopped just before `dataset.json` pointed to it, it does so now.
    """
    numbers = [int(match[1]) for name in storage.list("dataset_v") if (match := _VERSION.fullmatch(name))]
    if not numbers:
        return None
    name = version_name(max(numbers))
    info = parse_info(storage.uri, storage.read_bytes(name), name)
    index = storage.read_bytes(info.index_name)
    if checksum(index) != info.checksums.get(info.index_name):
        raise DataError(
            f"{storage.uri}/{info.index_name}: damaged (its checksum is not the one in {name}). "
            "Remedy: restore it from a copy, or encode again with overwrite=true"
        )
    point_to(storage, info.version)
    return Version(info, parse_index(storage.uri, index, info))


def gather_units(place: Place, before: Version | None, units: Sequence[WorkUnit], folder: Path) -> Gathered:
    """Read what became of units that are done; the rows go into a file in `folder`, behind those of `before`.

    Raises DataError where the manifest of `before` is damaged.
    """
    gathered = Gathered(ManifestFile(place.storage, folder), list(before.shards) if before else [])
    if before:
        gathered.manifest.begin_with(before.info)
        gathered.frames = before.info.frames
    for unit, record in read_records(place.storage, units, place.key):
        if record is None:
            gathered.redo.append(unit)
        elif not gathered.redo:
            gathered.add(record)
    return gathered


def publish_units(place: Place, before: Version | None, gathered: Gathered, num_plans: int) -> DatasetInfo | None:
    """Publish the version after `before` with what was gathered; None where that holds no new sample.

    Raises DataError where a sample would be there twice.
    """
    manifest = gathered.manifest
    num_before = before.info.num_samples if before else 0
    if manifest.num_rows == num_before:
        return None
    manifest.finish()
    dropped = dict.fromkeys([*(before.info.dropped if before else ()), *gathered.dropped])
    psnr_db, psnr_clips = _psnr(before, gathered.squared_errors)
    info = DatasetInfo(
        format=FORMAT,
        num_samples=manifest.num_rows,
        latent_channels=place.latent_channels,
        text_dim=place.text_dim,
        patch=place.patch,
        time_ratio=place.time_ratio,
        space_ratio=place.space_ratio,
        dropped=tuple(clip for clip in dropped if not manifest.holds(clip.clip_id)),
        captions_cut=(before.info.captions_cut if before else 0) + gathered.captions_cut,
        checksums={NULL_TEXT_NAME: place.null_text_checksum},
        version=before.info.version + 1 if before else 1,
        num_plans=num_plans,
        num_bytes=sum(shard.raw_data.bytes for shard in gathered.shards) + manifest.num_bytes,
        psnr_db=psnr_db,
        psnr_clips=psnr_clips,
        frames=gathered.frames,
        given_latents=place.given_latents,
        image_dim=place.image_dim,
    )
    return publish_version(place.storage, info, gathered.shards, manifest)


def clean(storage: Storage, version: Version, plans: Sequence[Plan]) -> None:
    """Delete what attempts that were stopped left of done plans: shards and pages that nothing names."""
    done = plans[: version.info.num_plans]
    kept = {shard.raw_data.basename for shard in version.shards}
    for name in storage.list(SHARDS_PREFIX):
        if name not in kept and 0 <= plan_number(name) < len(done):
            storage.delete(name)
    for plan in done:
        kept = set(plan.page_names())
        for name in storage.list(plan.pages_prefix):
            if name not in kept:
                storage.delete(name)


def _psnr(before: Version | None, errors: Sequence[float]) -> tuple[float | None, int]:
    """Mean over all measured clips; videos span -1..1, so that the peak is 2."""
    total, count = float(np.sum(errors)), len(errors)
    if before and before.info.psnr_db is not None:
        total += before.info.psnr_clips * 4.0 / 10.0 ** (before.info.psnr_db / 10.0)
        count += before.info.psnr_clips
    if not count:
        return None, 0
    return round(10.0 * float(np.log10(4.0 / max(total / count, 1e-12))), 2), count
