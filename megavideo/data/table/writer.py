"""The table of a manifest, its columns written while the manifest is read in blocks, by several processes if large.

This process reads and hashes the blocks in order; each is taken apart by whoever is free, from pages that are in memory
by then. Neither manifest nor table is ever in memory as a whole: blocks of some thousand rows are, and the few keys by
which rows are sorted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megavideo.data.dataset.manifest import Block, Blocks, Manifest
from megavideo.data.dataset.manifest_rows import ManifestRows
from megavideo.data.table.column_file import ColumnFile, write_header
from megavideo.data.table.ordered_pool import in_order, num_processes
from megavideo.data.table.row_order import rows_in_order
from megavideo.data.table.sample_table import groups_of, save_groups


@dataclass(frozen=True)
class _BlockWriter:
    """What any process needs to write the columns of a block. `file` is the open manifest, be it named or not."""

    rows: ManifestRows
    file: str
    sources: tuple[str, ...]
    latent: ColumnFile
    pixels: ColumnFile
    text: ColumnFile
    fps: ColumnFile
    group: ColumnFile

    def __call__(self, block: Block) -> tuple[npt.NDArray[np.int64], bytes]:
        """Write all of its columns that have their place by now; lengths of its ids [m], and the ids."""
        with open(self.file, "rb", buffering=0) as file:
            lines = os.pread(file.fileno(), block.num_bytes, block.offset)
        part = self.rows.parse(block.first, lines)
        for column, values in (
            (self.latent, part.latent), (self.pixels, part.pixels), (self.text, part.text), (self.fps, part.fps),
            (self.group, groups_of(self.sources, part.latent[:, 0], part.sources)),
        ):  # fmt: skip
            column.write(part.first, values)
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

    def column(name: str, dtype: type[np.generic], *shape: int) -> ColumnFile:
        return ColumnFile.create(folder, name, dtype, count, *shape)

    latent, text, group = column("latent", np.int32, 3), column("text", np.int32), column("group", np.int32)
    pixels, fps, index = column("pixels", np.int32, 3), column("fps", np.float64), column("index", np.int64)
    id_begin = ColumnFile.create(folder, "id_begin", np.int64, count + 1)
    with manifest.opened(on_progress, folder) as file, (folder / "id_bytes.npy").open("wb") as id_bytes:
        write_header(id_bytes, np.dtype(np.uint8), (0,))
        # by its number, as the copy of one in a store has no name
        place = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        write = _BlockWriter(manifest.rows, place, tuple(sources), latent, pixels, text, fps, group)
        blocks, num_ids, num_bytes = Blocks(manifest, file), 0, 0
        for lengths, ids in in_order(write, (block for block, _ in blocks), processes):
            ends = num_bytes + np.cumsum(lengths)
            id_begin.write(num_ids + 1, ends)
            num_ids, num_bytes = num_ids + len(ends), int(ends[-1])
            id_bytes.write(ids)
            on_progress()
        blocks.check()
        id_bytes.seek(0)
        write_header(id_bytes, np.dtype(np.uint8), (num_bytes,))

    runs = rows_in_order(group.mapped(), latent.mapped(), text.mapped(), index.mapped("r+"), on_progress)
    for name, values in (("run_begin", runs.begin), ("run_group", runs.group), ("run_volume", runs.volume)):
        np.save(folder / f"{name}.npy", values)
    save_groups(folder, (*sources, ""))
    group.path.unlink()
