"""Which checkpoints a run could go on from: those in its folder and those in its store."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from megavideo.checkpoint.folder_place import FolderPlace, recover_replaced
from megavideo.checkpoint.manifest import PREFIX, DamagedError, Manifest
from megavideo.checkpoint.place import Place, Storage
from megavideo.checkpoint.store_place import StorePlace
from megavideo.errors import MegavideoError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A checkpoint, and where it was found."""

    name: str
    in_folder: bool
    in_store: bool

    @property
    def step(self) -> int:
        """Global steps done."""
        return int(self.name.removeprefix(PREFIX))


def find_candidates(checkpoints: Path, storage: Storage | None) -> list[Candidate]:
    """All that are there, newest first. Raises DataError where the folder has none and the store cannot be asked."""
    if checkpoints.is_dir():
        recover_replaced(checkpoints)
    folder = set(FolderPlace(checkpoints).names())
    store: set[str] = set()
    if storage is not None:
        try:
            store = set(StorePlace(storage).names())
        except MegavideoError as error:
            if not folder:
                raise
            _log.warning("%s: not looked at for newer checkpoints (%s)", storage.uri, error)
    return [Candidate(name, name in folder, name in store) for name in sorted(folder | store, reverse=True)]


def newest_manifest(checkpoints: Path, storage: Storage | None = None) -> Manifest | None:
    """What the newest checkpoint says of itself, before its files are read; None where there is none.

    By one rank alone. Those whose manifest is damaged are passed over, as `restore` will do. Raises DataError where the
    store is needed and stays away.
    """
    for candidate in find_candidates(checkpoints, storage):
        places: list[Place] = [FolderPlace(checkpoints)] if candidate.in_folder else []
        if candidate.in_store and storage is not None:
            places.append(StorePlace(storage))
        for place in places:
            try:
                return place.manifest(candidate.name)
            except DamagedError as error:
                _log.warning("%s is passed over: %s", candidate.name, error)
    return None
