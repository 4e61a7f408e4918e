"""Copies of finished checkpoints in a store: every rank copies its own files, and rank 0 the manifest last."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from megavideo.checkpoint.folder_place import FolderPlace
from megavideo.checkpoint.manifest import FileEntry, Manifest, step_name
from megavideo.checkpoint.notes import Notes
from megavideo.checkpoint.place import SaveId
from megavideo.checkpoint.retention import Retention
from megavideo.checkpoint.store_place import StorePlace
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.errors import CheckpointError, MegavideoError


class Copies:
    """Copies checkpoints from the folder `checkpoints` to a store. Its methods run in the threads that save."""

    def __init__(self, store: StorePlace, checkpoints: Path, config: CheckpointConfig) -> None:
        self._store = store
        self._checkpoints = checkpoints
        self._retention = Retention(store, config)
        self._cleared = False

    def prepare(self, save: SaveId) -> str:
        """By rank 0, before any rank copies: an older one of the same step ceases to be one. What went wrong, or ''."""
        try:
            if not self._cleared:
                self._store.clear(save.session)
                self._cleared = True
            self._store.remove(save.name)
        except (OSError, MegavideoError) as error:
            return str(error)
        return ""

    def copy_files(self, notes: Notes, files: Iterable[FileEntry]) -> None:
        """Copy a rank's files, and leave the note that says so, or why not."""
        try:
            self._copy(notes.save.name, files)
        except (OSError, MegavideoError) as error:
            notes.leave("not_copied", str(error))
        else:
            notes.leave("copied")

    def finish(self, notes: Notes, manifest: Manifest) -> None:
        """By rank 0: wait for the ranks' files and copy the manifest; then remove copies that need not be kept.

        Raises CheckpointError or DataError where there is no copy.
        """
        faults = notes.faults("copied", "not_copied")
        if faults:
            raise CheckpointError(named_by_rank(faults))
        self._store.put_manifest(manifest, notes.save.name)
        self._retention.apply(manifest)
        self._catch_up()

    def _catch_up(self) -> None:
        """Copy what is missing there and would be kept there, as the store was away when it was saved."""
        place = FolderPlace(self._checkpoints)
        try:
            there = set(self._store.names())
            missing = [place.manifest(name) for name in place.names() if name not in there]
            for manifest in self._retention.wanted(missing):
                name = step_name(manifest.step)
                self._copy(name, manifest.files)
                self._store.put_manifest(manifest, name)
        except (OSError, MegavideoError) as error:
            logging.getLogger(__name__).warning("an older checkpoint was not copied after all (%s)", error)

    def _copy(self, name: str, files: Iterable[FileEntry]) -> None:
        for file in files:
            self._store.upload(self._checkpoints / name / file.file, f"{name}/{file.file}")


def named_by_rank(faults: dict[int, str], most: int = 8) -> str:
    """One line of the faults of ranks."""
    rows = [f"rank {rank}: {text}" for rank, text in faults.items()]
    more = f"; and {len(rows) - most} ranks more" if len(rows) > most else ""
    return "; ".join(rows[:most]) + more
