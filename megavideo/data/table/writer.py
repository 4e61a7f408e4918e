"""The table of a manifest, its columns written while the manifest is read in blocks, by several processes if large.

This process reads and hashes the blocks in order; each is taken apart by whoever is free, from pages that are in memory
by then. Neither manifest nor table is ever in memory as a whole: blocks of some thousand rows are, and the few keys by
which rows are sorted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megavideo.data.dataset.manifest import Block, Blocks, Manifest
from megavideo.data.dataset.manifest_rows import ManifestRows
from megavideo.data.table.column_file import ColumnFile, write_header
from megavideo.data.table.ordered_pool import in_order, num_processes
from megavideo.data.table.row_order import rows_in_order
from megavideo.data.table.sample_table import groups_of, hashes_of, save_groups

_GROUP = "group"  # a column that goes when rows are in order
# Written block by block: what a value is, and how many each row has.
_COLUMNS: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "latent": (np.int32, (3,)),
    "pixels": (np.int32, (3,)),
    "text": (np.int32, ()),
    "fps": (np.float64, ()),
    "id_hash": (np.uint64, ()),
    _GROUP: (np.int32, ()),
}


@dataclass(frozen=True)
class _BlockWriter:
    """What any process needs to write the columns of a block; `file` is the manifest."""

    rows: ManifestRows
    file: str
    sources: tuple[str, ...]
    columns: Mapping[str, ColumnFile]

    def __call__(self, block: Block) -> tuple[npt.NDArray[np.int64], bytes]:
        """Write all columns that have their place by now; lengths [m] of the ids, whose place is not known, and these.

        Raises DataError, naming the line, for one that is no row.
        """
        with open(self.file, "rb", buffering=0) as file:
            lines = os.pread(file.fileno(), block.num_bytes, block.offset)
        part = self.rows.parse(block.first, lines)
        values: dict[str, npt.NDArray[Any]] = {
            "latent": part.latent,
            "pixels": part.pixels,
            "text": part.text,
            "fps": part.fps,
            "id_hash": hashes_of(part.sample_ids),
            _GROUP: groups_of(self.sources, part.latent[:, 0], part.sources),
        }
        for name, column in self.columns.items():
            column.write(part.first, values[name])
        return np.array(list(map(len, part.sample_ids)), np.int64), b"".join(part.sample_ids)


def write_table(
    manifest: Manifest,
    sources: Sequence[str],
    folder: Path,
    on_progress: Callable[[], None] = lambda: None,
    processes: int | None = None,
) -> None:
    """Write the table of all rows of a manifest, grouped by `sources`, into a new folder.

    `processes` are as many as are worth it, unless given; the files are the same for any number. Raises DataError where
    the manifest cannot be read or is damaged, naming its first bad line, and OSError where the disk refuses.
    """
    folder.mkdir(parents=True)
    count = manifest.rows.num_samples
    processes = num_processes(count) if processes is None else processes
    columns: dict[str, ColumnFile] = {}
    for name, (dtype, shape) in _COLUMNS.items():
        columns[name] = ColumnFile.create(folder, name, dtype, count, *shape)
        on_progress()
    with manifest.opened(on_progress, folder) as file:
        # by its number, as the copy of one in a store has no name
        place = f"/proc/{os.getpid()}/fd/{file.fileno()}" if processes > 1 else f"/dev/fd/{file.fileno()}"
        write = _BlockWriter(manifest.rows, place, tuple(sources), columns)
        blocks = Blocks(manifest, file)
        jobs = (block for block, _ in blocks)
        with closing(in_order(write, jobs, processes)) as ids:
            _write_ids(folder, count, ids, on_progress)
        blocks.check()

    index = ColumnFile.create(folder, "index", np.int64, count)
    group, latent, text = (columns[name].mapped() for name in (_GROUP, "latent", "text"))
    runs = rows_in_order(group, latent, text, index.mapped("r+"), on_progress)
    for name, run_values in (("run_begin", runs.begin), ("run_group", runs.group), ("run_volume", runs.volume)):
        np.save(folder / f"{name}.npy", run_values)
    save_groups(folder, (*sources, ""))
    columns[_GROUP].path.unlink()


def _write_ids(
    folder: Path, count: int, ids: Iterable[tuple[npt.NDArray[np.int64], bytes]], on_progress: Callable[[], None]
) -> None:
    """The columns `id_begin` and `id_bytes`, of lengths and ids block by block."""
    begin = ColumnFile.create(folder, "id_begin", np.int64, count + 1)
    num_ids, num_bytes = 0, 0
    with (folder / "id_bytes.npy").open("wb") as file:
        write_header(file, np.dtype(np.uint8), (0,))
        for lengths, names in ids:
            ends = num_bytes + np.cumsum(lengths)
            begin.write(num_ids + 1, ends)
            file.write(names)
            num_ids, num_bytes = num_ids + len(ends), int(ends[-1])
            on_progress()
        file.seek(0)
        write_header(file, np.dtype(np.uint8), (num_bytes,))
