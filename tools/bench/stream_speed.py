"""Samples per second of the stream beside plain StreamingDataset and webdataset: same latents, same order, same run.

    python tools/bench/stream_speed.py [--json] [--repeats 5] [--samples 400] [--s3 s3://bucket/prefix]

Each delivers float32 tensors of every sample, in a process of its own, from a folder and, with --s3, from a store with
an empty cache (S3_ENDPOINT_URL and AWS_*). webdataset is compared with where it can be imported; from a store it
streams presigned addresses through curl. A figure is taken from the first sample to the last, so that no start is
counted; the ratio is the median over interleaved repeats of ours / theirs.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import multiprocessing
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[2]))

from megavideo.data.dataset.dataset import open_dataset
from megavideo.data.storage.open import open_storage
from megavideo.data.stream.shards import ShardReader, StreamOptions
from megavideo.testing.dataset import write_dataset
from megavideo.types import Grid

GRIDS = (Grid(9, 64, 56), Grid(5, 64, 56), Grid(1, 64, 56))  # 4 channels: 0.26 to 0.03 MB
SHARD_BYTES = 8 << 20
BATCH = 8
TARS = "webdataset"
Tensors = tuple[torch.Tensor, torch.Tensor]


def write_tars(folder: Path, out: Path) -> None:
    """The samples of the dataset in `folder` as webdataset's shards, as many and as large."""
    dataset = open_dataset(str(folder))
    shards = json.loads((folder / "index.json").read_bytes())["shards"]
    reader, index = ShardReader(dataset, None), 0
    for number, shard in enumerate(shards):
        with tarfile.open(out / f"{TARS}-{number:05d}.tar", "w") as tar:
            for _ in range(shard["samples"]):
                sample = reader.read(index)
                for name, array in (("latent", sample.latent), ("text", sample.text)):
                    file = io.BytesIO()
                    np.save(file, array.numpy().astype(np.float16))
                    entry = tarfile.TarInfo(f"{index:06d}.{name}.npy")
                    entry.size = file.tell()
                    file.seek(0)
                    tar.addfile(entry, file)
                index += 1


def tensors(latent: np.ndarray, text: np.ndarray) -> Tensors:
    """What training takes."""
    return torch.from_numpy(latent.copy()).float(), torch.from_numpy(text.copy()).float()


def from_ours(uri: str, cache: Path | None, workers: int) -> Iterator[Tensors]:
    """Our reader, its workers told of the next samples."""
    dataset = open_dataset(uri)
    reader = ShardReader(dataset, cache, StreamOptions(workers))
    order = range(dataset.info.num_samples)
    told = 0
    with reader.working():
        for index in order:
            while told < len(order) and reader.wants_more:
                reader.expect(order[told : told + BATCH])
                told += BATCH
            sample = reader.read(index)
            yield sample.latent, sample.text


def as_tensors(rows: list[dict[str, Any]]) -> list[Tensors]:
    """Collate without stacking: samples differ in size."""
    return [tensors(row["latent"], row["text"]) for row in rows]


def from_streaming(uri: str, cache: Path | None, workers: int) -> Iterator[Tensors]:
    """Plain StreamingDataset behind a DataLoader."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    place = {"local": uri} if cache is None else {"remote": uri, "local": str(cache)}
    dataset = StreamingDataset(**place, shuffle=False, batch_size=BATCH)
    for stream in dataset.streams:
        if cache is not None:
            stream._downloader.clean_up()  # else forked workers share its connection and hang
    for batch in DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=as_tensors):
        yield from batch


def from_webdataset(uri: str, cache: Path | None, workers: int) -> Iterator[Tensors]:
    """Plain webdataset behind a DataLoader."""
    import webdataset

    storage = open_storage(uri)
    names = [name for name in storage.list() if name.startswith(TARS)]
    if cache is None:
        urls = [str(Path(uri) / name) for name in names]
    else:
        client = boto3.session.Session().client("s3", endpoint_url=os.environ.get("S3_ENDPOINT_URL"))
        keys = [{"Bucket": storage.bucket, "Key": storage._key(name)} for name in names]  # type: ignore[attr-defined]
        urls = [f"pipe:curl -s -f '{client.generate_presigned_url('get_object', Params=key)}'" for key in keys]
    pipeline = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode()
    rows = pipeline.map(lambda row: {"latent": row["latent.npy"], "text": row["text.npy"]})
    for batch in DataLoader(rows, batch_size=BATCH, num_workers=workers, collate_fn=as_tensors):
        yield from batch


READERS: dict[str, Callable[[str, Path | None, int], Iterator[Tensors]]] = {
    "ours": from_ours,
    "StreamingDataset": from_streaming,
    "webdataset": from_webdataset,
}


def _measure(name: str, uri: str, workers: int, answers: Any) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache" if "://" in uri else None
        count, num_bytes, begin = 0, 0, 0.0
        for latent, text in READERS[name](uri, cache, workers):
            begin = begin or time.perf_counter()
            count += 1
            num_bytes += latent.nbytes + text.nbytes
        answers.put((count, num_bytes, (count - 1) / (time.perf_counter() - begin)))


def samples_per_second(name: str, uri: str, workers: int, num_samples: int) -> float:
    """Measured in a process of its own; raises where it does not deliver each sample."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=_measure, args=(name, uri, workers, answers))
    process.start()
    process.join(300)
    if process.is_alive() or process.exitcode:
        process.kill()
        raise RuntimeError(f"{name}, {workers} workers, {uri}: status {process.exitcode}")
    count, _, rate = answers.get()
    if count != num_samples:
        raise RuntimeError(f"{name}, {workers} workers, {uri}: {count} of {num_samples} samples")
    return float(rate)


def compare(uri: str, workers: int, repeats: int, names: Iterable[str], num_samples: int) -> dict[str, Any]:
    """Median samples per second of each, and the median, least and greatest of the paired ratios ours / theirs."""
    names = list(names)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names if repeat % 2 else reversed(names):
            rates[name].append(samples_per_second(name, uri, workers, num_samples))
    row: dict[str, Any] = {"samples_per_second": {name: statistics.median(rates[name]) for name in names}}
    for name in names[1:]:
        ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates[name], strict=True)]
        row[f"ours / {name}"] = [statistics.median(ratios), min(ratios), max(ratios)]
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--s3", help="an s3:// prefix to write the same shards to and read them from")
    arguments = parser.parse_args()
    names = [name for name in READERS if name != TARS or importlib.util.find_spec(TARS)]
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(folder, arguments.samples, grids=GRIDS, shard_bytes=SHARD_BYTES)
        if TARS in names:
            write_tars(Path(folder), Path(folder))
        places = {"folder": folder}
        if arguments.s3:
            storage = open_storage(arguments.s3)
            names_there = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
            for name in names_there:
                storage.upload(Path(folder) / name, name)
            places["S3"] = arguments.s3
        table = {
            f"{place}, {workers} workers": compare(uri, workers, arguments.repeats, names, arguments.samples)
            for place, uri in places.items()
            for workers in (0, 1, 2)
        }
        for name in names_there if arguments.s3 else ():
            storage.delete(name)
        num_bytes = sum(path.stat().st_size for path in Path(folder).glob("*.mds"))
    if arguments.json:
        print(json.dumps({"samples": arguments.samples, "megabytes": num_bytes / 1e6, "rows": table}))
        return
    print(f"{arguments.samples} samples, {num_bytes / 1e6:.0f} MB, {os.cpu_count()} cores")
    for title, row in table.items():
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in row["samples_per_second"].items())
        print(f"{title:20s} samples/s: {rates}")
        for name in names[1:]:
            median, low, high = row[f"ours / {name}"]
            print(f"{'':20s} ours / {name}: {median:.2f} ({low:.2f}-{high:.2f})")


if __name__ == "__main__":
    main()
