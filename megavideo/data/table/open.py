"""Tables of samples in a cache, made once for each machine and mapped by all of its ranks.

A table belongs to a version of a dataset and to the sources that a run tells apart; beside it lies, for each selection
of a run, which of its samples are left. Both are made in a folder of their own that is renamed when it is whole.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import logging
import mmap
import os
import platform
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from megavideo.border.json_text import read_json
from megavideo.data.dataset.dataset import LatentDataset
from megavideo.data.storage.files import writing
from megavideo.data.storage.locks import locked
from megavideo.data.table.sample_table import SampleTable, check_sources, open_column, open_table
from megavideo.data.table.selection import LeftOut, Selected, Selection, select
from megavideo.data.table.writer import write_table
from megavideo.errors import DataError
from megavideo.observe.whole_file import TEMPORARY_PREFIX

FOLDER_NAME = "megavideo-tables"
_FORMAT = 3
_PATIENCE_SECONDS = 120.0  # in which the one that makes a table must have moved
_FLUSHED_BYTES = 256 << 20
_TOLD_SECONDS = 5.0  # what takes longer is told
_SELECTED = ("index", "run_begin", "run_group", "run_volume")
Opened = TypeVar("Opened")


def cache_folder(output: str, cache: str | None) -> Path:
    """Where tables are kept, and shards of a store: `cache`, or else beside the run folders in `output`."""
    return Path(cache).expanduser() if cache else Path(output) / "cache"


def open_samples(dataset: LatentDataset, sources: Sequence[str] = (), cache: Path | None = None) -> SampleTable:
    """The table of all samples of a dataset, grouped by `sources`, mapped from files under `cache`.

    The first process of a machine that asks for it makes it. Without a cache it is made for this process alone. Raises
    DataError where the manifest is missing or damaged, a source has no sample, or the cache cannot be written.
    """
    if cache is None:
        with writing(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="megavideo-table-") as name:
            write_table(dataset.manifest, sources, Path(name) / "table")
            table = open_table(Path(name) / "table")  # the mapped files outlive their names
    else:
        folder = _folder(cache, dataset, sources)

        def make(temporary: Path, moved: Callable[[], None]) -> None:
            write_table(dataset.manifest, sources, temporary, moved)

        table = _made_once(folder, make, open_table)
    check_sources(table)
    return table


def open_selected(
    dataset: LatentDataset, sources: Sequence[str], selection: Selection, cache: Path | None = None
) -> Selected:
    """The samples of a dataset that a selection leaves, as `open_samples` gives them.

    Raises DataError as that does, and where no sample is left.
    """
    table = open_samples(dataset, sources, cache)
    if selection.takes_all:
        return Selected(table, np.zeros(0, np.int64), LeftOut(len(table)))
    if cache is None:
        return select(table, selection)

    def make(temporary: Path, moved: Callable[[], None]) -> None:
        _save_selected(select(table, selection, moved), temporary)

    folder = _folder(cache, dataset, sources)
    return _made_once(
        folder.with_name(f"{folder.name}-{selection.digest()}"), make, lambda made: _open_selected(made, table)
    )


def _folder(cache: Path, dataset: LatentDataset, sources: Sequence[str]) -> Path:
    manifest = dataset.manifest
    key = [_FORMAT, dataset.uri, manifest.rows.name, manifest.checksum, manifest.rows.num_samples, *sources]
    return cache / FOLDER_NAME / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]


def _save_selected(selected: Selected, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in _SELECTED:
        np.save(folder / f"{name}.npy", getattr(selected.table, name))
    np.save(folder / "held_out.npy", selected.held_out)
    (folder / "left_out.json").write_text(json.dumps(asdict(selected.left_out)))


def _open_selected(folder: Path, table: SampleTable) -> Selected:
    left_out = read_json(folder / "left_out.json", LeftOut)
    columns: dict[str, Any] = {name: open_column(folder, name) for name in _SELECTED}
    return Selected(replace(table, **columns), np.load(folder / "held_out.npy"), left_out)


def _made_once(
    folder: Path, make: Callable[[Path, Callable[[], None]], None], open_it: Callable[[Path], Opened]
) -> Opened:
    """What is in `folder`; made by whoever holds its lock first, anew where files of it are missing or cut."""
    found = _opened(folder, open_it)
    if found is not None:
        return found
    lock = folder.with_name(f"{folder.name}.lock")
    try:
        with locked(lock, _PATIENCE_SECONDS, lambda: _time_of_change(lock)) as fd:
            found = _opened(folder, open_it)  # by another one meanwhile
            if found is None:
                if folder.is_dir():
                    shutil.rmtree(folder)  # it is there and cannot be used
                _make(folder, make, lambda: os.utime(fd))
                found = open_it(folder)
            return found
    except OSError as error:
        raise DataError(
            f"{folder}: the table of samples cannot be kept there ({error}). Remedy: check rights and free space, or "
            "give another folder in data.cache (for data in a store) or output"
        ) from error


def _opened(folder: Path, open_it: Callable[[Path], Opened]) -> Opened | None:
    try:
        return open_it(folder)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logging.getLogger(__name__).warning("%s: made anew, as it cannot be used (%s)", folder, error)
        return None


def _make(folder: Path, make: Callable[[Path, Callable[[], None]], None], moved: Callable[[], None]) -> None:
    begin = time.monotonic()
    # Of this machine, whose lock is held here, only one that was killed has left any; another machine may be at it.
    of_this_machine = f"{TEMPORARY_PREFIX}{folder.name}-{platform.node()}-"
    for left in folder.parent.glob(f"{glob.escape(of_this_machine)}*"):
        shutil.rmtree(left)
    temporary = folder.with_name(f"{of_this_machine}{secrets.token_hex(4)}")
    try:
        make(temporary, moved)
        for path in temporary.iterdir():
            _flush(path, moved)
        os.rename(temporary, folder)
    except OSError as error:
        # another machine was first, on a file system whose locks hold within a machine
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    seconds = time.monotonic() - begin
    if seconds > _TOLD_SECONDS:
        logging.getLogger(__name__).info("made the table of samples %s in %.0f s", folder, seconds)


def _flush(path: Path, moved: Callable[[], None]) -> None:
    """Have a file on its disk; a piece at a time, as a slow one takes longer for a column than others wait."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        with mmap.mmap(file.fileno(), size) as mapped:
            for begin in range(0, size, _FLUSHED_BYTES):
                mapped.flush(begin, min(_FLUSHED_BYTES, size - begin))
                moved()
        os.fsync(file.fileno())


def _time_of_change(path: Path) -> int:
    return path.stat().st_mtime_ns
