"""Where checkpoints are written: what a folder and an object store have in common.

Ranks that save together write their files, and tell each other how far they are by small notes in the same place, so
that the thread which writes needs no collective call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from megavideo.checkpoint.manifest import UNFINISHED, FileEntry, Manifest, step_name
from megavideo.checkpoint.snapshot import RankState


@dataclass(frozen=True)
class SaveId:
    """One attempt to save a step: the `number`th of a start of the run, which is told from others by `session`."""

    step: int
    session: str
    number: int

    @property
    def name(self) -> str:
        """The name of the checkpoint."""
        return step_name(self.step)

    @property
    def working(self) -> str:
        """The hidden name under which it is made."""
        return f"{UNFINISHED}{self.name}.{self.session}-{self.number}"


class Storage(Protocol):
    """Of a storage of the data room what checkpoints use: named byte strings under a URI, each written as a whole.

    Every method raises DataError where the storage refuses or stays away.
    """

    uri: str

    def read_bytes(self, name: str) -> bytes:
        """The content of `name`."""
        ...

    def write_bytes(self, name: str, data: bytes, on_progress: Callable[[], None] | None = None) -> None:
        """Write or replace `name`; `on_progress` is called now and then while bytes go there."""
        ...

    def exists(self, name: str) -> bool:
        """True where `name` can be read."""
        ...

    def list(self, prefix: str = "") -> list[str]:
        """Names that begin with `prefix`, sorted."""
        ...

    def download(self, name: str, path: Path) -> None:
        """Copy `name` to the file `path`, atomically."""
        ...

    def upload(self, path: Path, name: str, on_progress: Callable[[], None] | None = None) -> None:
        """Copy the file `path` to `name`; `on_progress` as for `write_bytes`."""
        ...

    def delete(self, name: str) -> None:
        """Remove `name`; a missing one is no error."""
        ...


class Place(Protocol):
    """Holds finished checkpoints and those being written. Methods raise OSError or MegavideoError where it refuses."""

    def begin(self, save: SaveId) -> None:
        """Be ready for the files and notes of a save; every rank calls it."""
        ...

    def write(self, save: SaveId, rank: int, state: RankState) -> list[FileEntry]:
        """Write a rank's files."""
        ...

    def publish(self, save: SaveId, manifest: Manifest) -> None:
        """Make the checkpoint of all that was written; from then on it is listed. One of the same step is replaced."""
        ...

    def give_up(self, save: SaveId) -> None:
        """Remove what was written of it, but for the notes."""
        ...

    def names(self) -> list[str]:
        """Finished checkpoints, oldest first."""
        ...

    def manifest(self, name: str) -> Manifest:
        """Of a finished one."""
        ...

    def remove(self, name: str) -> None:
        """Remove a finished one, which first ceases to be listed."""
        ...

    def set_aside(self, name: str) -> str:
        """Give a damaged one another name, under which it is not listed; that name."""
        ...

    def clear(self, keep: str) -> None:
        """Remove what saves that were killed left, but those of the session `keep`."""
        ...

    def post(self, save: SaveId, note: str, text: str) -> None:
        """Leave a note, which is seen whole or not at all."""
        ...

    def notes(self, save: SaveId) -> list[str]:
        """Names of the notes left so far."""
        ...

    def has(self, save: SaveId, note: str) -> bool:
        """Whether a note was left; cheaper than `notes`, as many ranks ask for one."""
        ...

    def read(self, save: SaveId, note: str) -> str:
        """The text of a note."""
        ...

    def end(self, save: SaveId) -> None:
        """Remove the notes, and what else is left under the hidden name."""
        ...
