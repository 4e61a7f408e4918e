"""What planning needs of every sample, as columns that may lie in files: sizes, captions' lengths, ids.

Rows are sorted by (group, size, caption length), so that samples of one kind are a run of neighbouring rows, and the
few runs stand for the many rows. In files the columns are mapped, not read, and shared by the ranks of a machine.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megavideo.types import Grid, SampleInfo

KINDS = ("image", "video")
_TEXT_STEP = 32  # captions of one run differ in length by less
_NAMES = "groups.json"


@dataclass(frozen=True)
class SampleTable:
    """Samples in n rows and R runs of rows.

    index [n] is a sample's number in the shards, latent [n, 3] its size (t, h, w), text [n] its caption's length.
    Run r is rows run_begin[r] to run_begin[r + 1], all of group run_group[r] and volume run_volume[r].
    """

    groups: tuple[str, ...]
    index: npt.NDArray[np.int64]
    latent: npt.NDArray[np.int32]
    text: npt.NDArray[np.int32]
    id_begin: npt.NDArray[np.int64]
    id_bytes: npt.NDArray[np.uint8]
    run_begin: npt.NDArray[np.int64]
    run_group: npt.NDArray[np.int64]
    run_volume: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)

    def sample_id(self, row: int) -> str:
        """Id of the sample in a row."""
        return bytes(self.id_bytes[self.id_begin[row] : self.id_begin[row + 1]]).decode()

    def grid(self, row: int) -> Grid:
        """Size of the latent in a row."""
        t, h, w = self.latent[row].tolist()
        return Grid(t, h, w)

    def save(self, folder: Path) -> None:
        """Write one `.npy` file a column into a new folder."""
        folder.mkdir(parents=True)
        for name, column in _columns(self):
            np.save(folder / f"{name}.npy", column)
        (folder / _NAMES).write_text(json.dumps(self.groups))


def make_table(samples: Iterable[SampleInfo], sources: Sequence[str] = ()) -> SampleTable:
    """The table of a manifest.

    `sources` are patterns: `image`, `video`, or a glob over the samples' `source`. A sample's group is the first that
    it matches; those that match none are the last group.
    """
    find, text_of_id = _GroupFinder(sources), []
    rows: list[tuple[int, int, int, int, int, int]] = []
    for sample in samples:
        latent = sample.latent
        rows.append((find(sample), latent.t, latent.h, latent.w, sample.text_tokens, sample.index))
        text_of_id.append(sample.sample_id.encode())
    columns = np.array(rows, np.int64).reshape(-1, 6)
    group, latents, text = columns[:, 0], columns[:, 1:4], columns[:, 4]
    volume = latents.prod(axis=1)
    order = np.lexsort((columns[:, 5], text, volume, group))
    kinds = np.stack([group, volume, text // _TEXT_STEP])[:, order]
    begins = np.flatnonzero(np.diff(kinds, prepend=-1).any(axis=0))
    ids = [text_of_id[row] for row in order.tolist()]
    return SampleTable(
        groups=(*sources, ""),
        index=columns[order, 5],
        latent=latents[order].astype(np.int32),
        text=text[order].astype(np.int32),
        id_begin=np.cumsum([0, *map(len, ids)]),
        id_bytes=np.frombuffer(b"".join(ids), np.uint8),
        run_begin=np.append(begins, len(rows)),
        run_group=kinds[0, begins],
        run_volume=kinds[1, begins],
    )


def open_table(folder: Path) -> SampleTable:
    """The table that `save` wrote, mapped and not read."""
    groups = tuple(json.loads((folder / _NAMES).read_text()))
    names = [field.name for field in fields(SampleTable) if field.name != "groups"]
    return SampleTable(groups, **{name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="r") for name in names})


class _GroupFinder:
    """Number of the first pattern that a sample matches; sources seen before are remembered."""

    def __init__(self, sources: Sequence[str]) -> None:
        self._sources = sources
        self._known: dict[tuple[bool, str], int] = {}

    def __call__(self, sample: SampleInfo) -> int:
        if not self._sources:
            return 0
        key = (sample.latent.t > 1, sample.source)
        if key not in self._known:
            self._known[key] = self._find(KINDS[key[0]], sample.source)
        return self._known[key]

    def _find(self, kind: str, source: str) -> int:
        for number, pattern in enumerate(self._sources):
            if pattern == kind if pattern in KINDS else fnmatch.fnmatchcase(source, pattern):
                return number
        return len(self._sources)


def _columns(table: SampleTable) -> list[tuple[str, npt.NDArray[Any]]]:
    return [(field.name, getattr(table, field.name)) for field in fields(table) if field.name != "groups"]
