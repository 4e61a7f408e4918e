"""What planning needs of every sample, as columns that may lie in files: sizes, captions' lengths, rates, ids.

Columns are in the order of the manifest. One of them, `index`, puts the samples that are planned into rows sorted by
(group, size, caption length): so samples of one kind are a run of neighbouring rows, and the few runs stand for the
many rows. In files the columns are mapped, not read, and shared by the ranks of a machine.
"""

from __future__ import annotations

import fnmatch
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from megavideo.border.json_text import read_json
from megavideo.data.table.row_order import rows_in_order
from megavideo.errors import DataError
from megavideo.types import Grid, SampleInfo

KINDS = ("image", "video")
CHUNK = 1 << 18  # samples that are looked at together
_NAMES = "groups.json"
_ID_KEY = 0x6D656761766964


@dataclass(frozen=True)
class SampleTable:
    """N samples, of which n are planned, in R runs of rows.

    By sample: latent [N, 3] its size (t, h, w), text [N] its caption's tokens, pixels [N, 3] frames, height and width,
    fps [N], and its id, bytes id_begin[i] to id_begin[i + 1] of id_bytes, with its hash, id_hash [N], by which ids are
    looked for and samples held out. By row: index [n] the sample. Run r is rows run_begin[r] to run_begin[r + 1], all
    of group run_group[r] and volume run_volume[r], captions of nearly one length.
    """

    groups: tuple[str, ...]
    index: npt.NDArray[np.int64]
    latent: npt.NDArray[np.int32]
    text: npt.NDArray[np.int32]
    pixels: npt.NDArray[np.int32]
    fps: npt.NDArray[np.float64]
    id_begin: npt.NDArray[np.int64]
    id_bytes: npt.NDArray[np.uint8]
    id_hash: npt.NDArray[np.uint64]
    run_begin: npt.NDArray[np.int64]
    run_group: npt.NDArray[np.int64]
    run_volume: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def num_samples(self) -> int:
        """N: all samples, planned or not."""
        return len(self.text)

    def sample_id(self, sample: int) -> str:
        """Id of a sample."""
        return bytes(self.id_bytes[self.id_begin[sample] : self.id_begin[sample + 1]]).decode()

    def sample_ids(self, begin: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Ids of samples [begin, end), UTF-8, one after the other."""
        end = self.num_samples if end is None else end
        for at in range(begin, end, CHUNK):
            bounds = self.id_begin[at : min(at + CHUNK, end) + 1].tolist()
            data = bytes(self.id_bytes[bounds[0] : bounds[-1]])
            for first, last in itertools.pairwise(bounds):
                yield data[first - bounds[0] : last - bounds[0]]

    def grid(self, sample: int) -> Grid:
        """Size of a sample's latent."""
        t, h, w = self.latent[sample].tolist()
        return Grid(t, h, w)

    def chunks(self) -> Iterator[slice]:
        """All samples, some hundred thousand at a time."""
        for begin in range(0, self.num_samples, CHUNK):
            yield slice(begin, min(begin + CHUNK, self.num_samples))


def make_table(samples: Iterable[SampleInfo], sources: Sequence[str] = ()) -> SampleTable:
    """The table of all samples of a dataset, at hand in any order; a latent's cell stands for one pixel.

    `sources` are patterns: `image`, `video`, or a glob over the samples' `source`. A sample's group is the first that
    it matches; those that match none are the last group. Raises ValueError where a sample is missing or there twice.
    """
    infos = sorted(samples, key=lambda sample: sample.index)
    if [sample.index for sample in infos] != list(range(len(infos))):
        raise ValueError(f"{len(infos)} samples, whose indices are not 0 to {len(infos) - 1}")
    latent = np.array([(s.latent.t, s.latent.h, s.latent.w) for s in infos], np.int32).reshape(-1, 3)
    text = np.array([sample.text_tokens for sample in infos], np.int32)
    group = groups_of(sources, latent[:, 0], [sample.source.encode() for sample in infos])
    ids = [sample.sample_id.encode() for sample in infos]
    index = np.zeros(len(infos), np.int64)
    runs = rows_in_order(group, latent, text, index)
    return SampleTable(
        groups=(*sources, ""),
        index=index,
        latent=latent,
        text=text,
        pixels=latent,
        fps=np.array([sample.fps for sample in infos], np.float64),
        id_begin=np.cumsum([0, *map(len, ids)]),
        id_bytes=np.frombuffer(b"".join(ids), np.uint8),
        id_hash=hashes_of(ids),
        run_begin=runs.begin,
        run_group=runs.group,
        run_volume=runs.volume,
    )


def hashes_of(ids: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    """A hash of each id, which depends on nothing else: XXH64 under a key."""
    return np.fromiter(map(xxhash.xxh64_intdigest, ids, itertools.repeat(_ID_KEY)), np.uint64)


def save_groups(folder: Path, groups: Sequence[str]) -> None:
    """Write the names of a table's groups beside its columns."""
    (folder / _NAMES).write_text(json.dumps(groups))


def open_table(folder: Path) -> SampleTable:
    """The table in a folder, mapped and not read. Raises OSError or ValueError where files are missing or cut."""
    groups = read_json(folder / _NAMES, tuple[str, ...])
    return SampleTable(
        groups, **{f.name: open_column(folder, f.name) for f in fields(SampleTable) if f.name != "groups"}
    )


def open_column(folder: Path, name: str) -> npt.NDArray[Any]:
    """One column of a saved table, mapped. Raises OSError or ValueError where its file is missing or cut."""
    return np.lib.format.open_memmap(folder / f"{name}.npy", mode="r")


def check_sources(table: SampleTable) -> None:
    """Raise DataError where no sample is of one of the sources that the table was made for."""
    empty = [name for number, name in enumerate(table.groups[:-1]) if not (table.run_group == number).any()]
    if empty:
        raise DataError(
            f"data.sources: no sample is of {', '.join(empty)}. A name is image, video or a pattern as in films/* for "
            "the source that the manifest tells, and the first that fits counts. Remedy: correct or drop it"
        )


@dataclass(frozen=True)
class VideoRates:
    """Frames a second of a dataset's videos: those of most of them, and the lowest and highest of all."""

    common: float
    lowest: float
    highest: float


def video_rates(table: SampleTable) -> VideoRates | None:
    """The rates of the videos; None where there are none. Of equally common ones the one that comes first."""
    counts: Counter[float] = Counter()
    for chunk in table.chunks():
        rates = table.fps[chunk][table.latent[chunk, 0] > 1]
        values, first, times = np.unique(rates, return_index=True, return_counts=True)
        for place in np.argsort(first).tolist():
            counts[float(values[place])] += int(times[place])
    return VideoRates(counts.most_common(1)[0][0], min(counts), max(counts)) if counts else None


def groups_of(
    patterns: Sequence[str], frames: npt.NDArray[np.integer[Any]], sources: Sequence[bytes]
) -> npt.NDArray[np.int32]:
    """Number of the first pattern that each sample matches, [m]; that of no pattern is the last.

    frames [m] are those of its latent, `sources` its source in UTF-8.
    """
    groups = np.full(len(frames), len(patterns), np.int32)
    for number, pattern in reversed(list(enumerate(patterns))):
        if pattern in KINDS:
            groups[(frames > 1) == bool(KINDS.index(pattern))] = number
        else:
            fits = re.compile(fnmatch.translate(pattern)).match
            groups[[found is not None for found in map(fits, map(bytes.decode, sources))]] = number
    return groups
