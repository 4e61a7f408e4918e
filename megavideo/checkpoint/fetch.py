"""Checkpoints of a store brought into a folder, where they are read like any other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from megavideo.checkpoint.folder_place import flush_folder, write_flushed
from megavideo.checkpoint.manifest import MANIFEST, UNFINISHED, DamagedError, FileEntry, Manifest, file_digest
from megavideo.checkpoint.place import Storage
from megavideo.checkpoint.store_place import StorePlace


class Fetch:
    """One checkpoint on its way from a store into the folder `checkpoints`, by one process or several that share it.

    Methods raise DataError where the store refuses, and DamagedError for a file that does not arrive as it was
    written.
    """

    def __init__(self, storage: Storage, name: str, checkpoints: Path) -> None:
        self._storage = storage
        self._name = name
        self._working = checkpoints / f"{UNFINISHED}fetched-{name}"
        self.final = checkpoints / name

    def begin(self) -> None:
        """Remove what an earlier attempt left; one process does it before the others take part."""
        shutil.rmtree(self._working, ignore_errors=True)

    def manifest(self) -> Manifest:
        """The store's own."""
        return StorePlace(self._storage).manifest(self._name)

    def download(self, files: Iterable[FileEntry]) -> None:
        """Download those of the files that are not there yet, and compare each with its hash."""
        self._working.mkdir(parents=True, exist_ok=True)
        for file in files:
            path = self._working / file.file
            if path.exists() and path.stat().st_size == file.size_bytes:
                continue
            self._storage.download(f"{self._name}/{file.file}", path)
            if (found := file_digest(path)) != file.xxh64:
                path.unlink()
                raise DamagedError(
                    f"{self._storage.uri}/{self._name}/{file.file}: damaged in the store or on the way: its xxh64 is "
                    f"{found}, the manifest says {file.xxh64}. Remedy: use another checkpoint"
                )

    def finish(self, manifest: Manifest, rank: int = 0) -> None:
        """Make it a checkpoint; of several processes that share the folder, one does and the others see it done."""
        unseen = self._working / f".{MANIFEST}.{rank}"
        try:
            write_flushed(unseen, manifest.to_json().encode())
            os.replace(unseen, self._working / MANIFEST)
            os.replace(self._working, self.final)
        except OSError:
            if not (self.final / MANIFEST).exists():
                raise
        flush_folder(self.final.parent)


def fetch_checkpoint(storage: Storage, name: str, checkpoints: Path, tell: Callable[[str], None]) -> Path:
    """Bring one checkpoint into the folder, by this process alone, and return its place; each file is told of."""
    fetch = Fetch(storage, name, checkpoints)
    fetch.begin()
    manifest = fetch.manifest()
    for file in manifest.files:
        fetch.download([file])
        tell(file.file)
    fetch.finish(manifest)
    return fetch.final
