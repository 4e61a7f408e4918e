"""Samples by index from MDS shards, in a folder or a store; a shard is trusted only once its hash was seen to match."""

from __future__ import annotations

import fcntl
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from streaming.base.format.mds.reader import MDSReader

from megavideo.data.dataset import INDEX_NAME, LatentDataset
from megavideo.data.storage import LocalStorage
from megavideo.errors import DataError

_HASH = "xxh64"
_ATTEMPTS = 2


@dataclass(frozen=True)
class LatentSample:
    """One encoded sample: latent [C, T, H, W] and text [L, text_dim], float32, and frames per second."""

    latent: torch.Tensor
    text: torch.Tensor
    fps: float


class ShardReader:
    """Random access to the samples of a dataset.

    Shards of a store are fetched into `cache`, once per machine whatever the number of ranks; shards of a folder are
    read in place. Raises DataError naming the shard for whatever is missing or damaged; a bad file never stays cached.
    """

    def __init__(self, dataset: LatentDataset, cache: Path | None) -> None:
        self._dataset = dataset
        self._cache = None if cache is None else cache / hashlib.sha256(dataset.uri.encode()).hexdigest()[:16]
        self._folder = self._cache
        if self._folder is None:
            if not isinstance(dataset.storage, LocalStorage):
                raise DataError(f"{dataset.uri}: a store needs a cache folder. Remedy: set data.cache")
            self._folder = dataset.storage.folder
        index: dict[str, Any] = json.loads(dataset.storage.read_bytes(INDEX_NAME))
        self._shards: list[dict[str, Any]] = index["shards"]
        self._ends = np.cumsum([shard["samples"] for shard in self._shards])
        self._open: dict[int, MDSReader] = {}

    def read(self, index: int) -> LatentSample:
        """The sample with this index in the manifest."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[number]) - self._shards[number]["samples"]
        row = self._shard(number).get_item(index - first)
        expected = self._dataset.samples[index].sample_id
        if row["sample_id"] != expected:
            raise DataError(
                f"{self._dataset.uri}: sample {index} is {row['sample_id']!r}, and the manifest says {expected!r}. "
                "Remedy: the shards and the manifest are of different datasets; encode again with overwrite=true"
            )
        return LatentSample(
            latent=torch.from_numpy(row["latent"].astype(np.float32)),
            text=torch.from_numpy(row["text"].astype(np.float32)),
            fps=float(row["fps"]),
        )

    def _shard(self, number: int) -> MDSReader:
        if number not in self._open:
            self._verify(self._shards[number]["raw_data"])
            self._open[number] = MDSReader.from_json(str(self._folder), None, dict(self._shards[number]))
        return self._open[number]

    def _verify(self, entry: dict[str, Any]) -> None:
        assert self._folder is not None
        path = self._folder / entry["basename"]
        if self._cache is None:
            self._check(path, entry)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / f"{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one rank of the machine fetches, the others wait and find it
            for attempt in range(_ATTEMPTS):
                if not path.exists():
                    self._dataset.storage.download(entry["basename"], path)
                try:
                    self._check(path, entry)
                    return
                except DataError:
                    path.unlink(missing_ok=True)
                    if attempt == _ATTEMPTS - 1:
                        raise

    def _check(self, path: Path, entry: dict[str, Any]) -> None:
        expected = entry["hashes"][_HASH]
        try:
            actual = xxhash.xxh64(path.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(
                f"{path}: shard cannot be read ({error.strerror}). Remedy: restore it, or encode again with "
                "overwrite=true"
            ) from error
        if actual != expected:
            raise DataError(
                f"{path}: shard is damaged: its {_HASH} is {actual}, the index says {expected}. Remedy: restore it "
                "from a copy, or encode again with overwrite=true"
            )
