"""The shards of a dataset, each read once: its hash, whose samples it holds, and what their latents are like."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from streaming.base.format.mds.reader import MDSReader

from megavideo.data.dataset.dataset import LatentDataset
from megavideo.data.dataset.given_latents import given_of_row, image_of_row
from megavideo.data.dataset.index import ShardEntry
from megavideo.data.storage.local import LocalStorage
from megavideo.data.stream.cache import ShardCache
from megavideo.data.stream.shard_files import ShardFiles
from megavideo.data.stream.shards import decode_row
from megavideo.data.table.sample_table import SampleTable
from megavideo.errors import DataError
from megavideo.evaluation.dataset_report import Latents, Reason, Shards

_THREADS = 4
_MOST_BAD = 100  # shards, after which the others are not looked at: a store that is down would be waited for each time
_NAMED = 20
_MARKS = ("latent not finite", "text not finite", "latent of one value")
_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class _Content:
    """Of the n samples of a shard: hashes [n] of their latents, and what is said of each [n, 3] (`_MARKS`).

    `moments` [3, C] are count, sum and sum of squares of the finite latents, by channel.
    """

    digests: np.ndarray
    marks: np.ndarray
    moments: np.ndarray


def check_shards(dataset: LatentDataset, table: SampleTable, read: bool) -> Shards:
    """What the shards of the samples of `table` are like; they are read if `read` is set, and else only looked for."""
    entries = dataset.read_index()
    num_bytes = sum(entry.raw_data.bytes for entry in entries)
    if not read:
        missing = _missing(dataset, entries)
        return Shards(len(entries), num_bytes, 0, 0, missing, None, (), None, ())
    num_samples = dataset.info.num_samples
    digests, known = np.zeros(num_samples, np.uint64), np.zeros(num_samples, bool)
    marks = np.zeros((num_samples, len(_MARKS)), bool)
    moments = np.zeros((3, dataset.info.latent_channels))
    bad: list[Reason] = []
    checked = 0
    ends = np.cumsum([entry.samples for entry in entries]).tolist()
    for number, found in _contents(dataset, table, entries, ends):
        checked += 1
        if isinstance(found, DataError):
            bad.append(Reason(entries[number].raw_data.basename, str(found)))
            if len(bad) == _MOST_BAD:
                break
            continue
        rows = slice(ends[number] - entries[number].samples, ends[number])
        digests[rows], marks[rows], known[rows] = found.digests, found.marks, True
        moments += found.moments
    repeats = _repeats(digests, known)
    latent, text, constant = (np.flatnonzero(column) for column in marks.T)
    return Shards(
        count=len(entries),
        num_bytes=num_bytes,
        checked=checked,
        left_out=len(entries) - checked,
        bad=tuple(bad),
        same_content=len(repeats),
        same_content_first=tuple(
            Reason(table.sample_id(again), f"as {table.sample_id(first)}") for again, first in repeats[:_NAMED]
        ),
        non_finite=len(latent),
        non_finite_first=_first(table, latent),
        non_finite_text=len(text),
        non_finite_text_first=_first(table, text),
        constant=len(constant),
        constant_first=_first(table, constant),
        latents=_statistics(moments),
    )


def _first(table: SampleTable, samples: np.ndarray) -> tuple[str, ...]:
    return tuple(table.sample_id(sample) for sample in samples[:_NAMED].tolist())


def _statistics(moments: np.ndarray) -> Latents | None:
    count, total, squares = moments
    if not count.all():
        return None
    mean, deviation = total.sum() / count.sum(), squares / count - (total / count) ** 2
    std = np.sqrt(squares.sum() / count.sum() - mean**2)
    return Latents(float(mean), float(std), tuple(np.sqrt(np.maximum(deviation, 0.0)).tolist()))


def _missing(dataset: LatentDataset, entries: list[ShardEntry]) -> tuple[Reason, ...]:
    names = [entry.raw_data.basename for entry in entries]
    there = set(dataset.storage.list())
    return tuple(
        Reason(name, f"{dataset.uri}/{name}: is not there. Remedy: restore it from a copy, or encode again with "
               "overwrite=true")
        for name in names if name not in there
    )  # fmt: skip


def _contents(
    dataset: LatentDataset, table: SampleTable, entries: list[ShardEntry], ends: list[int]
) -> Iterator[tuple[int, _Content | DataError]]:
    """What each shard holds, or what is wrong with it, in order; a few are read at a time."""
    log, begin = logging.getLogger(__name__), time.monotonic()
    num_bytes = sum(entry.raw_data.bytes for entry in entries)
    last_line, seen_bytes = begin, 0
    with _opened(dataset, entries) as files, ThreadPoolExecutor(_THREADS) as pool:

        def look(number: int) -> _Content | DataError:
            first = ends[number] - entries[number].samples
            expected = [name.decode() for name in table.sample_ids(first, ends[number])]
            try:
                return _content(dataset, files, entries[number], number, expected)
            except DataError as error:
                return error

        for first in range(0, len(entries), 2 * _THREADS):
            group = range(first, min(first + 2 * _THREADS, len(entries)))
            for number, found in zip(group, pool.map(look, group), strict=True):
                seen_bytes += entries[number].raw_data.bytes
                now = time.monotonic()
                if now - last_line > _SECONDS_BETWEEN_LINES:
                    last_line = now
                    left = (now - begin) * (num_bytes - seen_bytes) / max(1, seen_bytes)
                    log.info(
                        "checked %d of %d shards, %.2f of %.2f GB, %.0f s left",
                        number + 1, len(entries), seen_bytes / 1e9, num_bytes / 1e9, left,
                    )  # fmt: skip
                yield number, found


@contextmanager
def _opened(dataset: LatentDataset, entries: list[ShardEntry]) -> Iterator[ShardFiles]:
    """The shards as files: in place where they lie in a folder, else through a small folder that goes again."""
    if isinstance(dataset.storage, LocalStorage):
        yield ShardFiles(dataset.uri, dataset.storage, entries, None, "")
        return
    most = 4 * _THREADS * max(entry.raw_data.bytes for entry in entries)
    with tempfile.TemporaryDirectory(prefix="megavideo-doctor-") as name:
        cache = ShardCache(Path(name), most, dataset.storage.retry.longest_seconds + 3.0)
        yield ShardFiles(dataset.uri, dataset.storage, entries, cache, "shards")


def _content(
    dataset: LatentDataset, files: ShardFiles, entry: ShardEntry, number: int, expected: list[str]
) -> _Content:
    fd = files.open(number)
    try:
        data = os.pread(fd, entry.raw_data.bytes, 0)
    finally:
        os.close(fd)
    count = entry.samples
    name = f"{dataset.uri}/{entry.raw_data.basename}"
    if len(data) < 4 * (count + 2):
        raise DataError(f"{name}: too short for {count} samples. Remedy: encode again with overwrite=true")
    begins = np.frombuffer(data, np.uint32, count + 1, 4).tolist()
    reader = MDSReader.from_json("", None, entry.to_mds())
    digests, marks = np.zeros(count, np.uint64), np.zeros((count, len(_MARKS)), bool)
    moments: Any = 0.0
    for row in range(count):
        sample = decode_row(
            reader, data[begins[row] : begins[row + 1]], f"{name}: sample {row}", dataset.info.latent_channels
        )
        if sample["sample_id"] != expected[row]:
            raise DataError(
                f"{name}: its sample {row} is {sample['sample_id']!r}, and the manifest "
                f"says {expected[row]!r}. Remedy: encode again with overwrite=true"
            )
        latent = sample["latent"]
        digests[row] = xxhash.xxh3_64_intdigest(latent.tobytes(), seed=latent.shape[-1])
        bad = any(not_finite(values) for values in (latent, *_given(sample, f"{name}: sample {row}")))
        marks[row] = bad, not_finite(sample["text"]), bool((latent == latent.flat[0]).all())
        if not marks[row, 0]:
            values = latent.reshape(len(latent), -1).astype(np.float64)
            moments = moments + np.stack([np.full(len(values), values.shape[1]), values.sum(1), (values**2).sum(1)])
    return _Content(digests, marks, moments)


def _given(sample: dict[str, Any], place: str) -> list[np.ndarray]:
    """Latents and embedding of given frames; DataError, which names `place`, where they are not of the due size."""
    try:
        image = image_of_row(sample)
        return [*given_of_row(sample).values(), *([] if image is None else [image])]
    except ValueError as error:
        raise DataError(f"{place} is damaged ({error}). Remedy: encode again with overwrite=true") from error


def not_finite(values: np.ndarray) -> bool:
    """Whether any of them is NaN or infinite."""
    return not bool(np.isfinite(values).all())


def _repeats(digests: np.ndarray, known: np.ndarray) -> list[tuple[int, int]]:
    """(sample, the first sample that has the same latent), for every sample that repeats one."""
    rows = np.flatnonzero(known)
    order = rows[np.argsort(digests[rows], kind="stable")]
    if not len(order):
        return []
    starts = np.flatnonzero(np.concatenate([[True], digests[order][1:] != digests[order][:-1]]))
    first = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
    return sorted((again, one) for again, one in zip(order.tolist(), first.tolist(), strict=True) if again != one)
