"""The table of a manifest, written column by column while the manifest is read in parts.

Neither is ever in memory as a whole: a part of some thousand rows is, and the few keys by which rows are sorted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from megavideo.data.dataset.manifest import Manifest
from megavideo.data.table.row_order import rows_in_order
from megavideo.data.table.sample_table import GroupFinder, save_groups

_GROUP = "group"  # a column that goes when rows are in order


def write_table(
    manifest: Manifest, sources: Sequence[str], folder: Path, on_progress: Callable[[], None] = lambda: None
) -> None:
    """Write the table of all rows of a manifest, grouped by `sources`, into a new folder.

    Raises DataError where the manifest cannot be read or is damaged, OSError where the disk refuses.
    """
    folder.mkdir(parents=True)
    count = manifest.num_samples

    def column(name: str, dtype: type[np.generic], *shape: int) -> npt.NDArray[Any]:
        made: npt.NDArray[Any] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.dtype(dtype), shape)
        return made

    latent, pixels = column("latent", np.int32, count, 3), column("pixels", np.int32, count, 3)
    text, fps = column("text", np.int32, count), column("fps", np.float64, count)
    group, id_begin = column(_GROUP, np.int32, count), column("id_begin", np.int64, count + 1)
    find = GroupFinder(sources)
    num_bytes = 0
    with (folder / "id_bytes.npy").open("wb") as file:
        _write_header(file, 0)
        for part in manifest.parts(on_progress, folder):
            rows = slice(part.first, part.end)
            latent[rows], pixels[rows], text[rows], fps[rows] = part.latent, part.pixels, part.text, part.fps
            frames = part.latent[:, 0].tolist()
            group[rows] = [find(*each) for each in zip(frames, part.sources, strict=True)] if sources else 0
            ids = [sample_id.encode() for sample_id in part.sample_ids]
            id_begin[part.first + 1 : part.end + 1] = num_bytes + np.cumsum([len(name) for name in ids])
            num_bytes += file.write(b"".join(ids))
        file.seek(0)
        _write_header(file, num_bytes)

    runs = rows_in_order(group, latent, text, column("index", np.int64, count), on_progress)
    for name, values in (("run_begin", runs.begin), ("run_group", runs.group), ("run_volume", runs.volume)):
        np.save(folder / f"{name}.npy", values)
    save_groups(folder, (*sources, ""))
    os.unlink(folder / f"{_GROUP}.npy")


def _write_header(file: BinaryIO, count: int) -> None:
    """The head of a `.npy` file of `count` bytes; of one length, as room is left in it for the count to grow."""
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, description)
