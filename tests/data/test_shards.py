"""Random access to shards, and faults that name the shard."""

from __future__ import annotations

import copy
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from streaming import StreamingDataset

from megavideo.border.json_text import parse_json
from megavideo.data.dataset.dataset import open_dataset
from megavideo.data.stream.shards import ShardReader
from megavideo.errors import DataError
from megavideo.testing.dataset import write_dataset


def reader(uri: str, cache: Path | None = None) -> ShardReader:
    return ShardReader(open_dataset(uri), cache)


def test_reads_what_was_written_in_any_order(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), 30, shard_bytes=4096)
    assert len(list(tmp_path.glob("shard.*.mds"))) > 3
    stream = StreamingDataset(local=str(tmp_path), shuffle=False, batch_size=1, validate_hash="xxh64")
    source = reader(str(tmp_path))
    for index in (29, 0, 13, 13, 28, 1):
        sample, row = source.read(index), stream[index]
        assert sample.latent.dtype == sample.text.dtype == torch.float32
        assert np.array_equal(sample.latent.numpy(), row["latent"].astype(np.float32))
        assert np.array_equal(sample.text.numpy(), row["text"].astype(np.float32))
        assert sample.fps == row["fps"]


def spoil(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 4
        path.write_bytes(bytes(data))
    elif how == "truncated":
        path.write_bytes(bytes(data[:-100]))
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("how", "words"),
    [("flipped", "damaged"), ("truncated", "damaged"), ("empty", "damaged"), ("missing", "cannot be read")],
)
def test_a_bad_shard_is_named(tmp_path: Path, how: str, words: str) -> None:
    write_dataset(str(tmp_path), 30, shard_bytes=4096)
    spoil(tmp_path / "shard.00002.mds", how)
    source = reader(str(tmp_path))
    source.read(0)  # other shards serve
    with pytest.raises(DataError, match=rf"shard\.00002\.mds: shard .*{words}.*Remedy"):
        for index in range(30):
            source.read(index)


def test_shards_of_another_dataset_are_refused(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), 6)
    dataset = open_dataset(str(tmp_path))
    assert ShardReader(dataset, None).read(0, "sample-0").fps == 8.0
    with pytest.raises(DataError, match=r"sample 0 is 'sample-0', and the manifest says 'sample-5'"):
        ShardReader(dataset, None).read(0, "sample-5")


def test_little_is_kept_of_each_of_many_shards(tmp_path: Path) -> None:
    """Every rank and worker has the whole list in memory."""
    write_dataset(str(tmp_path), 30, shard_bytes=4096)
    dataset = open_dataset(str(tmp_path))
    path = tmp_path / dataset.info.index_name
    index = json.loads(path.read_bytes())
    count = 3000
    index["shards"] = [copy.deepcopy(index["shards"][0]) for _ in range(count)]
    path.write_text(json.dumps(index))
    num_samples = count * index["shards"][0]["samples"]
    dataset = replace(dataset, info=replace(dataset.info, num_samples=num_samples))
    parse_json(b"{}")  # what it imports is no part of what is measured
    tracemalloc.start()
    source = ShardReader(dataset, None)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept / count < 500
    assert source.read(count).fps == 8.0


class _Remote:
    """A storage that is no folder, so that its shards go through the cache; counts what is fetched."""

    def __init__(self, inner: object, damaged: int = 0) -> None:
        self._inner = inner
        self.damaged = damaged
        self.fetched: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def copy_to(self, name: str, file: BinaryIO, on_progress: Callable[[], None]) -> None:
        data = bytearray(self._inner.read_bytes(name))  # type: ignore[attr-defined]
        self.fetched.append(name)
        if len(self.fetched) <= self.damaged:
            data[len(data) // 2] ^= 4
        file.write(data)


def remote(folder: Path, damaged: int = 0) -> tuple[object, _Remote]:
    write_dataset(str(folder), 6)
    dataset = open_dataset(str(folder))
    storage = _Remote(dataset.storage, damaged)
    return type(dataset)(dataset.uri, dataset.info, dataset.null_text, storage), storage  # type: ignore[arg-type]


def test_the_cache_is_filled_once_and_heals(tmp_path: Path) -> None:
    dataset, storage = remote(tmp_path / "data")
    first = ShardReader(dataset, tmp_path / "cache").read(0)  # type: ignore[arg-type]
    ShardReader(dataset, tmp_path / "cache").read(0)  # type: ignore[arg-type]
    assert storage.fetched == ["shard.00000.mds"]
    (cached,) = (tmp_path / "cache").rglob("shard.00000.mds")
    spoil(cached, "truncated")
    again = ShardReader(dataset, tmp_path / "cache").read(0)  # type: ignore[arg-type]
    assert torch.equal(first.latent, again.latent)
    assert storage.fetched == ["shard.00000.mds"] * 2


def test_one_damaged_download_is_tried_again_and_a_damaged_store_is_named(tmp_path: Path) -> None:
    dataset, storage = remote(tmp_path / "once", damaged=1)
    ShardReader(dataset, tmp_path / "cache").read(0)  # type: ignore[arg-type]
    assert len(storage.fetched) == 2
    dataset, _ = remote(tmp_path / "always", damaged=99)
    with pytest.raises(DataError, match=r"shard\.00000\.mds: shard is damaged"):
        ShardReader(dataset, tmp_path / "cache").read(0)  # type: ignore[arg-type]
    other = list((tmp_path / "cache").rglob("*.mds"))
    assert len(other) == 1  # the bad file did not stay


def test_a_store_needs_a_cache(tmp_path: Path) -> None:
    dataset, _ = remote(tmp_path / "data")
    with pytest.raises(DataError, match="needs a cache folder"):
        ShardReader(dataset, None)  # type: ignore[arg-type]


def test_s3_through_the_cache(s3_bucket: str, tmp_path: Path) -> None:
    uri = f"{s3_bucket}/latents"
    write_dataset(uri, 6)
    first = reader(uri, tmp_path).read(2)
    (cached,) = tmp_path.rglob("shard.00000.mds")
    spoil(cached, "flipped")
    assert torch.equal(reader(uri, tmp_path).read(2).latent, first.latent)
