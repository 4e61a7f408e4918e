"""Checkpoints in a folder that all ranks share: made under a hidden name, flushed, and renamed."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from megavideo.checkpoint.manifest import (
    DAMAGED,
    MANIFEST,
    UNFINISHED,
    FileEntry,
    Manifest,
    list_checkpoints,
    read_manifest,
)  # fmt: skip
from megavideo.checkpoint.place import SaveId
from megavideo.checkpoint.snapshot import RankState
from megavideo.checkpoint.tensor_file import write_tensors

_CONTENT = "content"  # the folder that will be renamed, beside the notes
_REPLACED = f"{UNFINISHED}replaced-"
_UNSEEN = "."


class FolderPlace:
    """The `checkpoints` folder of a run. A save takes place in `.writing-step_...`, whose `content` becomes `step_...`.

    Removal begins with a rename too, so that one half removed is not taken for a checkpoint. `on_progress` is called
    whenever a piece of a file was written.
    """

    def __init__(self, checkpoints: Path, on_progress: Callable[[], None] = lambda: None) -> None:
        self._folder = checkpoints
        self._on_progress = on_progress

    def begin(self, save: SaveId) -> None:
        """Make the hidden folder."""
        self._content(save).mkdir(parents=True, exist_ok=True)

    def write(self, save: SaveId, rank: int, state: RankState) -> list[FileEntry]:
        """One file, or several where the snapshot is cut."""
        entries = []
        for part, tensors in enumerate(state.files):
            path = self._content(save) / fragments_file(rank, part, len(state.files))
            entries.append(write_tensors(path, tensors, state.buffer, self._on_progress))
        return entries

    def publish(self, save: SaveId, manifest: Manifest) -> None:
        """Write the manifest last of all files, flush, and rename."""
        content, final = self._content(save), self._folder / save.name
        write_flushed(content / MANIFEST, manifest.to_json().encode())
        flush_folder(content)
        replaced = self._folder / f"{_REPLACED}{save.name}"
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(final, replaced)
        os.replace(content, final)
        flush_folder(self._folder)
        shutil.rmtree(replaced, ignore_errors=True)

    def give_up(self, save: SaveId) -> None:
        """Remove the content."""
        shutil.rmtree(self._content(save), ignore_errors=True)

    def names(self) -> list[str]:
        """Folders with a manifest."""
        return [path.name for path in list_checkpoints(self._folder)]

    def manifest(self, name: str) -> Manifest:
        """Read it."""
        return read_manifest(self._folder / name)

    def remove(self, name: str) -> None:
        """Rename, then remove."""
        doomed = self._folder / f"{UNFINISHED}removed-{name}"
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(self._folder / name, doomed)
        shutil.rmtree(doomed)

    def set_aside(self, name: str) -> str:
        """Give a damaged one a name under which it is no checkpoint; that name."""
        numbers = (f".{number}" if number else "" for number in itertools.count())
        aside = next(n for n in (f"{DAMAGED}{name}{number}" for number in numbers) if not (self._folder / n).exists())
        os.replace(self._folder / name, self._folder / aside)
        return aside

    def clear(self, keep: str) -> None:
        """Remove hidden folders, but give its name back to a checkpoint that was about to be replaced."""
        recover_replaced(self._folder)
        for stale in self._folder.glob(f"{UNFINISHED}*"):
            if f".{keep}-" not in stale.name:
                shutil.rmtree(stale, ignore_errors=True)

    def post(self, save: SaveId, note: str, text: str) -> None:
        """A small file. On a disk so full that not even its text can be written, the note is left empty."""
        path, unseen = self._working(save) / note, self._working(save) / f"{_UNSEEN}{note}"
        try:
            unseen.write_text(text)  # not flushed to disk: no note outlives its save
        except OSError:
            unseen.unlink(missing_ok=True)
            unseen.touch()
        os.replace(unseen, path)

    def notes(self, save: SaveId) -> list[str]:
        """Files of the hidden folder."""
        try:
            return [name for name in os.listdir(self._working(save)) if name != _CONTENT and name[0] != _UNSEEN]
        except FileNotFoundError:
            return []

    def has(self, save: SaveId, note: str) -> bool:
        """Whether the file is there."""
        return (self._working(save) / note).is_file()

    def read(self, save: SaveId, note: str) -> str:
        """The file's text."""
        return (self._working(save) / note).read_text()

    def end(self, save: SaveId) -> None:
        """Remove the hidden folder."""
        shutil.rmtree(self._working(save), ignore_errors=True)

    def _working(self, save: SaveId) -> Path:
        return self._folder / save.working

    def _content(self, save: SaveId) -> Path:
        return self._working(save) / _CONTENT


def recover_replaced(checkpoints: Path) -> None:
    """Give its name back to a checkpoint whose successor of the same step was never finished."""
    for replaced in checkpoints.glob(f"{_REPLACED}*"):
        final = checkpoints / replaced.name.removeprefix(_REPLACED)
        if not final.exists():
            os.replace(replaced, final)


def fragments_file(rank: int, part: int, num_parts: int) -> str:
    """The name of a rank's file; its parts are numbered where there are several."""
    return f"fragments_{rank:05d}{f'_{part:03d}' if num_parts > 1 else ''}.safetensors"


def write_flushed(path: Path, data: bytes) -> None:
    """Write a file and flush it to disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
