"""Samples by index from MDS shards, in a folder or a store; a shard is trusted only once its hash was seen to match."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from streaming.base.format.mds.reader import MDSReader

from megavideo.border.names import shown
from megavideo.data.dataset.caption_texts import split_texts
from megavideo.data.dataset.dataset import LatentDataset
from megavideo.data.dataset.given_latents import given_of_row, image_of_row
from megavideo.data.dataset.index import ShardEntry
from megavideo.data.storage.local import LocalStorage
from megavideo.data.stream.cache import ShardCache
from megavideo.data.stream.counts import StreamCounts, zero_counts
from megavideo.data.stream.prefetch import ShardWorkers
from megavideo.data.stream.shard_files import ShardFiles
from megavideo.errors import DataError

_FOLDER_SECONDS = 120.0  # a shard is hashed at once; a file system that takes longer hangs


@dataclass(frozen=True)
class LatentSample:
    """One encoded sample: latent [C, T, H, W] and text [L, text_dim], float32, and frames per second.

    Where it has several captions, `texts` are all of them, `weights` how often each is to be drawn, and `text` is the
    heaviest; else both are empty. `given` holds, for the tasks that the dataset stores, latents of a video with only
    their given frames and grey ones in place of the others, and `image` [I, E] the embedding of the first frame.
    """

    latent: torch.Tensor
    text: torch.Tensor
    fps: float
    texts: tuple[torch.Tensor, ...] = ()
    weights: tuple[float, ...] = ()
    given: Mapping[str, torch.Tensor] = field(default_factory=dict)
    image: torch.Tensor | None = None


@dataclass(frozen=True)
class StreamOptions:
    """How shards are had ahead of their use: by processes, or a thread for 0; bytes of the cache, None: its disk's."""

    workers: int = 0
    cache_bytes: float | None = None


class ShardReader:
    """Random access to the samples of a dataset.

    Shards of a store are fetched into `cache`, once per machine whatever the number of ranks and workers; shards of a
    folder are read in place. Raises DataError naming the shard for whatever is missing or damaged; a bad file never
    gets into the cache, and one that went bad there is replaced.
    """

    def __init__(self, dataset: LatentDataset, cache: Path | None, options: StreamOptions | None = None) -> None:
        options = options or StreamOptions()
        self._dataset = dataset
        shards = dataset.read_index()
        self._ends = np.cumsum([shard.samples for shard in shards])
        self._formats = _Formats(shards)
        shard_cache = None
        # Each that waits for another is a little more patient than it, so that the cause is told, not the waiting.
        patience = dataset.storage.retry.longest_seconds
        if cache is not None:
            shard_cache = ShardCache(cache, options.cache_bytes, patience + 3.0)
        elif not isinstance(dataset.storage, LocalStorage):
            raise DataError(f"{dataset.uri}: a store needs a cache folder. Remedy: set data.cache")
        prefix = hashlib.sha256(dataset.uri.encode()).hexdigest()[:16]
        self._files = ShardFiles(dataset.uri, dataset.storage, shards, shard_cache, prefix)
        self._num_workers = options.workers
        self._patience_seconds = patience + 4.5 if cache else _FOLDER_SECONDS
        self._workers: ShardWorkers | None = None
        self._counts = zero_counts()
        self._wait_seconds = 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run the workers meanwhile. To be entered before threads that read are started."""
        self._workers = ShardWorkers(self._files, self._num_workers, self._patience_seconds)
        try:
            yield
        finally:
            self._workers.close()
            self._counts.update(self._workers.counts)
            self._workers = None

    def stop(self) -> None:
        """Make a thread that waits for a worker give up."""
        if self._workers:
            self._workers.stop()

    @property
    def wants_more(self) -> bool:
        """True where `expect` would set an idle worker to work."""
        return self._workers is not None and self._workers.wants_more

    def expect(self, indices: Iterable[int]) -> None:
        """Have the workers fetch what these samples need; they will be read soon, in this order."""
        if not self._workers:
            return
        for number in dict.fromkeys(self._number(index) for index in indices):
            fd = self._files.open_trusted(number)
            if fd is None:
                self._workers.request(number)
            else:
                os.close(fd)

    def read(self, index: int, sample_id: str | None = None) -> LatentSample:
        """The sample with this index in the manifest; DataError where the shard holds another than `sample_id`."""
        number = self._number(index)
        first = int(self._ends[number - 1]) if number else 0
        data = self._sample_bytes(number, index - first)
        row = decode_row(
            self._formats.of(number), data, f"{self._dataset.uri}: sample {index}", self._dataset.info.latent_channels
        )
        if sample_id is not None and row["sample_id"] != sample_id:
            raise DataError(
                f"{self._dataset.uri}: sample {index} is {shown(row['sample_id'])}, and the manifest says "
                f"{shown(sample_id)}. Remedy: the shards and the manifest are of different datasets; encode again "
                "with overwrite=true"
            )
        self._counts["samples"] += 1
        self._counts["read_bytes"] += len(data)
        return self._sample(index, row)

    def counts(self) -> StreamCounts:
        """What was done so far."""
        total = self._counts + self._files.counts
        workers = self._workers
        if workers:
            total += workers.counts
        return StreamCounts(**total, wait_seconds=self._wait_seconds)  # type: ignore[arg-type]

    def _sample(self, index: int, row: dict[str, Any]) -> LatentSample:
        try:
            arrays, weights = split_texts(row)
            given: dict[str, torch.Tensor] = {task: _float_tensor(array) for task, array in given_of_row(row).items()}
            embedding = image_of_row(row)
        except ValueError as error:
            raise DataError(
                f"{self._dataset.uri}: sample {index}: {error}. Remedy: encode again with overwrite=true"
            ) from error
        texts = tuple(_float_tensor(array) for array in arrays)
        latent, fps = _float_tensor(row["latent"]), float(row["fps"])
        image = None if embedding is None else _float_tensor(embedding)
        if len(texts) == 1:
            return LatentSample(latent, texts[0], fps, given=given, image=image)
        return LatentSample(latent, texts[weights.index(max(weights))], fps, texts, weights, given, image)

    def _number(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))

    def _sample_bytes(self, number: int, row: int) -> bytes:
        """What a shard holds of a sample. Where samples begin stands at its head: uint32 n, then n + 1 offsets."""
        fd = self._open(number)
        try:
            places = os.pread(fd, 8, 4 + 4 * row)
            begin, end = np.frombuffer(places, np.uint32).tolist() if len(places) == 8 else (0, 0)
            data = os.pread(fd, max(0, end - begin), begin)
        finally:
            os.close(fd)
        if not data or len(data) != end - begin:
            raise DataError(
                f"{self._dataset.uri}: shard {number} is damaged, or was cut while it was read: no sample {row} is in "
                "it. Remedy: leave the files alone, or encode again with overwrite=true"
            )
        return data

    def _open(self, number: int) -> int:
        fd = self._files.open_trusted(number)
        if fd is not None:
            return fd
        if self._files.was_trusted(number):
            self._tell_refetched()
        begin = time.monotonic()
        try:
            if self._workers:
                self._workers.ensure(number)
            return self._files.open(number)
        finally:
            self._wait_seconds += time.monotonic() - begin

    def _tell_refetched(self) -> None:
        if not self._counts["refetched"]:
            logging.getLogger(__name__).warning(
                "%s: a shard that was ready has gone from the cache and is fetched again; if this goes on, raise "
                "data.cache_gb", self._dataset.uri,
            )  # fmt: skip
        self._counts["refetched"] += 1


def decode_row(reader: MDSReader, data: bytes, place: str, channels: int) -> dict[str, Any]:
    """The columns of a sample from its bytes; DataError, which names `place`, where they are no sample of ours."""
    try:
        row: dict[str, Any] = reader.decode_sample(data)
        latent, text = row["latent"].shape, row["text"].shape
        if len(latent) != 4 or latent[0] != channels or 0 in latent or len(text) != 2 or 0 in text:
            raise ValueError(f"a latent {latent} of {channels} channels and text {text}")
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:  # as numpy and the library say it
        raise DataError(f"{place} is damaged ({error}). Remedy: encode again with overwrite=true") from error
    return row


class _Formats:
    """The library's decoders of shards: one for all that have the same columns, as nearly all of a dataset have."""

    def __init__(self, shards: Sequence[ShardEntry]) -> None:
        self._readers: list[MDSReader] = []
        known: dict[tuple[object, ...], int] = {}
        self._of_shards = np.zeros(len(shards), np.int32)
        for number, shard in enumerate(shards):
            columns = (shard.column_names, shard.column_encodings)
            if columns not in known:
                known[columns] = len(self._readers)
                self._readers.append(MDSReader.from_json("", None, shard.to_mds()))
            self._of_shards[number] = known[columns]

    def of(self, number: int) -> MDSReader:
        """The decoder of a shard."""
        return self._readers[self._of_shards[number]]


def _float_tensor(array: np.ndarray) -> torch.Tensor:
    # torch widens halves several times faster than numpy, and wants them writable, which a view of bytes is not
    return torch.from_numpy(array.copy()).float()
