"""Checkpoints in a storage without folders, as S3: one is there as long as its manifest is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megavideo.checkpoint.folder_place import fragments_file
from megavideo.checkpoint.manifest import DAMAGED, MANIFEST, PREFIX, UNFINISHED, FileEntry, Manifest, parse_manifest
from megavideo.checkpoint.place import SaveId, Storage
from megavideo.checkpoint.snapshot import RankState
from megavideo.checkpoint.tensor_file import tensor_bytes


class StorePlace:
    """A storage as a place. A file's name has the save in it, so that one of the same step is replaced as a whole.

    `on_progress` is called by any thread whenever a piece was put or an object removed.
    """

    def __init__(self, storage: Storage, on_progress: Callable[[], None] = lambda: None) -> None:
        self.storage = storage
        self._on_progress = on_progress

    def begin(self, save: SaveId) -> None:
        """Nothing is needed."""

    def write(self, save: SaveId, rank: int, state: RankState) -> list[FileEntry]:
        """Put a rank's files, each in one request."""
        entries = []
        for part, tensors in enumerate(state.files):
            name = f"{save.session}-{save.number}-{fragments_file(rank, part, len(state.files))}"
            entry, content = tensor_bytes(name, tensors, state.buffer)
            self.storage.write_bytes(f"{save.name}/{name}", content, self._on_progress)
            entries.append(entry)
        return entries

    def publish(self, save: SaveId, manifest: Manifest) -> None:
        """Put the manifest, then remove files that it does not name."""
        self.put_manifest(manifest, save.name)
        kept = {MANIFEST, *(file.file for file in manifest.files)}
        for name in self.storage.list(f"{save.name}/"):
            if name.removeprefix(f"{save.name}/") not in kept:
                self._delete(name)

    def upload(self, path: Path, name: str) -> None:
        """Copy a file of a checkpoint that is written already."""
        self.storage.upload(path, name, self._on_progress)

    def put_manifest(self, manifest: Manifest, name: str) -> None:
        """Make a checkpoint of files that are there already."""
        self.storage.write_bytes(f"{name}/{MANIFEST}", manifest.to_json().encode())

    def give_up(self, save: SaveId) -> None:
        """Remove this save's files."""
        for name in self.storage.list(f"{save.name}/{save.session}-{save.number}-"):
            self._delete(name)

    def names(self) -> list[str]:
        """Prefixes with a manifest."""
        suffix = f"/{MANIFEST}"
        return [name.removesuffix(suffix) for name in self.storage.list(PREFIX) if name.endswith(suffix)]

    def manifest(self, name: str) -> Manifest:
        """Read it."""
        place = f"{name}/{MANIFEST}"
        return parse_manifest(self.storage.read_bytes(place), f"{self.storage.uri}/{place}")

    def remove(self, name: str) -> None:
        """The manifest goes first."""
        self._delete(f"{name}/{MANIFEST}")
        for file in self.storage.list(f"{name}/"):
            self._delete(file)

    def set_aside(self, name: str) -> str:
        """Rename a damaged one's manifest, without which it is no checkpoint; the new name."""
        aside = f"{name}/{DAMAGED}{MANIFEST}"
        self.storage.write_bytes(aside, self.storage.read_bytes(f"{name}/{MANIFEST}"))
        self.storage.delete(f"{name}/{MANIFEST}")
        return aside

    def clear(self, keep: str) -> None:
        """Remove notes of other sessions, and files that no manifest stands beside, were it a damaged one's."""
        found = [name.partition("/") for name in (*self.storage.list(UNFINISHED), *self.storage.list(PREFIX))]
        described = {folder for folder, _, file in found if file.endswith(MANIFEST)}
        for folder, _, file in found:
            hidden = folder.startswith(UNFINISHED)
            stale = f".{keep}-" not in folder if hidden else folder not in described
            if stale and not file.startswith(f"{keep}-"):
                self._delete(f"{folder}/{file}")

    def post(self, save: SaveId, note: str, text: str) -> None:
        """A small object."""
        self.storage.write_bytes(f"{save.working}/{note}", text.encode())

    def notes(self, save: SaveId) -> list[str]:
        """Objects under the hidden name."""
        return [name.removeprefix(f"{save.working}/") for name in self.storage.list(f"{save.working}/")]

    def has(self, save: SaveId, note: str) -> bool:
        """Whether the object is there."""
        return self.storage.exists(f"{save.working}/{note}")

    def read(self, save: SaveId, note: str) -> str:
        """The object's text."""
        return self.storage.read_bytes(f"{save.working}/{note}").decode()

    def end(self, save: SaveId) -> None:
        """Remove the notes."""
        for name in self.storage.list(f"{save.working}/"):
            self._delete(name)

    def _delete(self, name: str) -> None:
        self.storage.delete(name)
        self._on_progress()
