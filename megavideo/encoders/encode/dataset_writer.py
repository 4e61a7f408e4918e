"""Writing shards, and versions of a dataset that are there whole or not at all.

A shard's name holds its hash: of two attempts at one unit neither can spoil what the other wrote. A version is its
index and its manifest, then its description; `dataset.json` is pointed to it last.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from megavideo.config.schema.prepare import GivenTask
from megavideo.data.dataset.caption_texts import join_texts
from megavideo.data.dataset.dataset import (
    DATASET_NAME,
    INDEX_NAME,
    DatasetInfo,
    checksum,
    index_name,
    info_bytes,
    parse_info,
    version_name,
)
from megavideo.data.dataset.given_latents import GIVEN_COLUMNS, IMAGE_COLUMN, given_columns
from megavideo.data.dataset.index import COLUMNS, ShardEntry, index_bytes, read_index
from megavideo.data.storage.files import writing
from megavideo.data.storage.protocol import Storage
from megavideo.encoders.encode.manifest_file import ManifestFile
from megavideo.errors import DataError
from megavideo.types import SampleInfo

_HASH = "xxh64"


class ShardWriter:
    """Writes samples to shards, moving each to the storage as soon as it is full. Made by `writing_shards`.

    A shard is stored as `prefix`, its number and its hash. Samples come with latents of what is given for the tasks
    `given`, and `with_image` with the embedding of the first frame. A disk that refuses is a DataError.
    """

    def __init__(
        self,
        storage: Storage,
        prefix: str,
        staging: Path,
        shard_bytes: int,
        given: Sequence[GivenTask] = (),
        *,
        with_image: bool = False,
    ) -> None:
        from streaming import MDSWriter

        self.num_samples = 0
        self._storage = storage
        self._prefix = prefix
        self._staging = staging / "shards"
        self._names: dict[str, tuple[str, str]] = {}
        self._shards = MDSWriter(
            columns={**COLUMNS, **given_columns(given, with_image=with_image)}, out=str(self._staging), hashes=[_HASH],
            size_limit=shard_bytes, max_workers=1,
        )  # fmt: skip

    def add(
        self,
        sample: SampleInfo,
        latent: np.ndarray,
        texts: Sequence[np.ndarray],
        weights: Sequence[float],
        given: Mapping[GivenTask, np.ndarray] | None = None,
        image: np.ndarray | None = None,
    ) -> None:
        """Append a sample: latent [C, t, h, w], float16, and of each caption its text [L, text_dim] and weight.

        `given` are latents of the same size, one a task; `image` [I, E] is the embedding of the first frame.
        """
        row: dict[str, Any] = {"sample_id": sample.sample_id, "latent": latent, "caption": sample.caption}
        row |= {GIVEN_COLUMNS[task]: values for task, values in (given or {}).items()}
        row |= {} if image is None else {IMAGE_COLUMN: image}
        with writing(self._staging):
            self._shards.write(row | {"fps": np.float64(sample.fps)} | join_texts(texts, weights))
        self.num_samples += 1
        self._move_shards()

    def finish(self) -> list[ShardEntry]:
        """Write the last shard; gives the entries of all of them for an index."""
        with writing(self._staging):
            self._shards.finish()
        self._move_shards()
        return [self._published(entry) for entry in read_index(self._staging / INDEX_NAME)]

    def _published(self, entry: ShardEntry) -> ShardEntry:
        name, digest = self._names[entry.raw_data.basename]
        if entry.raw_data.hashes != {_HASH: digest}:
            raise DataError(f"{self._staging}: a shard was changed while it was written. Remedy: leave the files alone")
        return replace(entry, raw_data=replace(entry.raw_data, basename=name))

    def abandon(self) -> None:
        """Stop the writer's threads after a fault."""
        self._shards.cancel_future_jobs()

    def _move_shards(self) -> None:
        for path in sorted(self._staging.glob("shard.*.mds")):
            digest = xxhash.xxh64(path.read_bytes()).hexdigest()
            name = f"{self._prefix}.{len(self._names):05d}.{digest}.mds"
            self._storage.upload(path, name)
            self._names[path.name] = (name, digest)
            path.unlink()


@contextmanager
def writing_shards(
    storage: Storage,
    prefix: str,
    staging: Path,
    shard_bytes: int,
    given: Sequence[GivenTask] = (),
    *,
    with_image: bool = False,
) -> Iterator[ShardWriter]:
    """A writer of shards that are made in `staging`, a folder for this alone."""
    writer = ShardWriter(storage, prefix, staging, shard_bytes, given, with_image=with_image)
    try:
        yield writer
    except BaseException:
        writer.abandon()
        raise
    finally:
        shutil.rmtree(staging / "shards", ignore_errors=True)


def publish_version(
    storage: Storage, info: DatasetInfo, shards: Sequence[ShardEntry], manifest: ManifestFile
) -> DatasetInfo:
    """Write the version `info`, whose index and manifest are added to its checksums, and point `dataset.json` to it.

    One that is there is left as it is. Gives the description that counts.
    """
    if info.num_samples < 1:
        raise ValueError("a version without samples is never published")
    index = index_bytes(shards)
    sums = {info.index_name: checksum(index), info.manifest_name: manifest.checksum}
    info = replace(info, checksums=info.checksums | sums)
    if not storage.exists(version_name(info.version)):
        storage.write_bytes(info.index_name, index)
        storage.upload(manifest.path, info.manifest_name)
        storage.write_bytes(version_name(info.version), info_bytes(info))
    point_to(storage, info.version)
    name = version_name(info.version)
    return parse_info(storage.uri, storage.read_bytes(name), name)


def point_to(storage: Storage, version: int) -> None:
    """Make a published version the newest: what `dataset.json` and `index.json` hold."""
    storage.write_bytes(INDEX_NAME, storage.read_bytes(index_name(version)))
    storage.write_bytes(DATASET_NAME, storage.read_bytes(version_name(version)))
