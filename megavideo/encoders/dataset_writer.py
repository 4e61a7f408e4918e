"""Writing an encoded dataset so that it is there whole or not at all.

A mark is set before the first change and `dataset.json` is written last. A place with the mark and without
`dataset.json` is an attempt that did not finish: the next one clears it. Only names of the dataset layout are
ever deleted.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from megavideo.data.dataset import (
    COLUMNS,
    DATASET_NAME,
    ENCODERS_PREFIX,
    INDEX_NAME,
    MANIFEST_NAME,
    NULL_TEXT_NAME,
    DatasetInfo,
    manifest_line,
)
from megavideo.data.storage import LocalStorage, Storage, open_storage
from megavideo.errors import DataError
from megavideo.types import SampleInfo

_MARK_NAME = "encode.unfinished"
_STAGING_PREFIX = ".staging-"
_SHARD = re.compile(r"shard\.\d{5}\.mds")
_HASHES = ["xxh64"]
_SMALL_FILES = (MANIFEST_NAME, NULL_TEXT_NAME, INDEX_NAME)


def check_place(uri: str, overwrite: bool) -> Storage:
    """The storage at `uri`, after checking that a dataset may be written there. Changes nothing.

    Raises DataError where a dataset or foreign shards are there already, or where the store cannot be reached.
    """
    storage = open_storage(uri)
    if isinstance(storage, LocalStorage) and storage.folder.exists() and not storage.folder.is_dir():
        raise DataError(f"{uri}: is a file, and a dataset is a folder. Remedy: give another out=")
    if storage.exists(DATASET_NAME):
        if overwrite:
            return storage
        raise DataError(f"{uri}: holds a dataset already. Remedy: give another out=, or overwrite=true to replace it")
    shards = storage.exists(INDEX_NAME) or any(_SHARD.fullmatch(name) for name in storage.list("shard."))
    if shards and not storage.exists(_MARK_NAME):
        raise DataError(f"{uri}: holds shards that encode did not write. Remedy: give another out=, or move them away")
    return storage


class DatasetWriter:
    """Writes samples to shards, moving each shard to the storage as soon as it is full. Made by `writing_dataset`."""

    def __init__(self, storage: Storage, staging: Path, shard_bytes: int) -> None:
        from streaming import MDSWriter

        self.num_samples = 0
        self.num_bytes = 0
        self._storage = storage
        self._staging = staging
        self._manifest: list[str] = []
        self._shards = MDSWriter(
            columns=COLUMNS, out=str(staging / "shards"), hashes=_HASHES, size_limit=shard_bytes, max_workers=1
        )

    def add(self, sample: SampleInfo, latent: np.ndarray, text: np.ndarray, pixels: tuple[int, int, int]) -> None:
        """Append a sample: latent [C, t, h, w] and text [L, text_dim], float16; `pixels` are frames, height, width."""
        row: dict[str, Any] = {"sample_id": sample.sample_id, "latent": latent, "text": text, "caption": sample.caption}
        self._shards.write(row | {"fps": np.float64(sample.fps)})
        self._manifest.append(manifest_line(sample, pixels))
        self.num_samples += 1
        self._move_shards()

    def finish(self, small_files: dict[str, bytes]) -> dict[str, bytes]:
        """Write the last shard, the index, the manifest and `small_files`; gives these files by name."""
        self._shards.finish()
        self._move_shards()
        files = small_files | {
            INDEX_NAME: (self._staging / "shards" / INDEX_NAME).read_bytes(),
            MANIFEST_NAME: "".join(self._manifest).encode("utf-8"),
        }
        for name, data in files.items():
            self._storage.write_bytes(name, data)
            self.num_bytes += len(data)
        return files

    def abandon(self) -> None:
        """Stop the writer's threads after a fault."""
        self._shards.cancel_future_jobs()

    def _move_shards(self) -> None:
        for path in sorted((self._staging / "shards").glob("shard.*.mds")):
            self._storage.upload(path, path.name)
            self.num_bytes += path.stat().st_size
            path.unlink()


@contextmanager
def writing_dataset(storage: Storage, shard_bytes: int) -> Iterator[DatasetWriter]:
    """Clear the place of what an earlier dataset or attempt left, and give a writer for it."""
    storage.write_bytes(_MARK_NAME, json.dumps({"note": "encode has not finished here"}).encode())
    storage.delete(DATASET_NAME)
    for name in storage.list():
        if name in _SMALL_FILES or name.startswith(ENCODERS_PREFIX) or _SHARD.fullmatch(name):
            storage.delete(name)
    # A local place stages in itself, so that its own disk must hold the shards and no other.
    home = storage.folder if isinstance(storage, LocalStorage) else None
    if home is not None:
        for stale in home.glob(f"{_STAGING_PREFIX}*"):
            shutil.rmtree(stale)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=home))
    try:
        writer = DatasetWriter(storage, staging, shard_bytes)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def complete(storage: Storage, info: DatasetInfo, content: bytes) -> None:
    """Declare the dataset whole: write `dataset.json`, with `content`, and take the mark away."""
    if info.num_samples < 1:
        raise ValueError("a dataset without samples is never complete")
    storage.write_bytes(DATASET_NAME, content)
    storage.delete(_MARK_NAME)
