"""Where inputs come from: a folder, or a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Protocol

from megavideo.config.schema.prepare import IngestRun
from megavideo.data.clips.captions import CaptionNote
from megavideo.data.clips.formats import why_not_read
from megavideo.data.clips.stored import ClipPlace
from megavideo.data.ingest.examine import Recipe
from megavideo.data.ingest.find import Captions, Found, find_inputs
from megavideo.data.ingest.part import Part, current_part
from megavideo.data.ingest.report import NOT_READ, SUFFIX, DroppedClip
from megavideo.data.ingest.work import Job
from megavideo.data.storage.open import is_object_store
from megavideo.errors import ConfigError, DataError


class Source(Protocol):
    """Inputs by name, sorted, and what is known of each."""

    @property
    def root(self) -> str:
        """The folder or address that the list of clips tells."""
        ...

    @property
    def files(self) -> Sequence[str]:
        """The names."""
        ...

    @property
    def place(self) -> ClipPlace:
        """Where they are read from."""
        ...

    @property
    def identity(self) -> str:
        """By what processes know that they read the same."""
        ...

    def refused(self, captions: Captions) -> Iterator[DroppedClip]:
        """What looks like an input and is none."""
        ...

    def captions(self, own_file: str | None) -> AbstractContextManager[Captions]:
        """The captions of the inputs, of `own_file` if there is one; as `Captions` raises."""
        ...

    def notes(self, notes: Iterable[CaptionNote]) -> tuple[CaptionNote, ...]:
        """Notes of `Captions` as a user knows the files."""
        ...

    def prepare(self, out: Path, mine: Callable[[str], bool]) -> None:
        """Make ready under `out` what beside the clips is needed of those inputs that are `mine`."""
        ...

    def part(self, out: Path, file: str, recipe: Recipe) -> Part | None:
        """The part of an input if it is still true, as `current_part` gives it."""
        ...

    def batches(self, files: Iterable[str], out: Path, recipe: Recipe) -> Iterator[list[Job]]:
        """Jobs of the inputs `files`, as many at a time as memory holds."""
        ...

    def look_again(self) -> None:
        """Have `files` and `part` speak of what is there now."""
        ...


class FolderSource:
    """The inputs of a folder, or a single file."""

    def __init__(self, root: Path, found: Found) -> None:
        self.root = str(root)
        self.files = found.files
        self.place = root
        self._found = found

    @property
    def identity(self) -> str:
        """The folder with links resolved."""
        return os.path.realpath(self.root)

    def refused(self, captions: Captions) -> Iterator[DroppedClip]:
        """What cannot be an input by its name or kind, and what has a caption and is no media by its suffix."""
        for name, reason in self._found.refused:
            yield DroppedClip(name, NOT_READ, reason)
        for name in captions.unread(self.files, self._found.others):
            yield DroppedClip(name, SUFFIX, why_not_read(Path(name)))

    def captions(self, own_file: str | None) -> AbstractContextManager[Captions]:
        """Those of `own_file`, else beside the clips."""
        return closing(Captions(self.place, own_file))

    def notes(self, notes: Iterable[CaptionNote]) -> tuple[CaptionNote, ...]:
        """As they are."""
        return tuple(notes)

    def prepare(self, out: Path, mine: Callable[[str], bool]) -> None:
        """Nothing: all lies there."""

    def part(self, out: Path, file: str, recipe: Recipe) -> Part | None:
        """By content and time of change."""
        return current_part(out, self.place, file, recipe.key)

    def batches(self, files: Iterable[str], out: Path, recipe: Recipe) -> Iterator[list[Job]]:
        """All at once: their names are in memory anyway."""
        yield [Job(file, out, recipe) for file in files]

    def look_again(self) -> None:
        """Nothing: files are looked at as they are asked for."""


@contextmanager
def opened_source(cfg: IngestRun) -> Iterator[tuple[Source, Path]]:
    """The inputs of `cfg.src`, and the folder `cfg.out`.

    Raises DataError where there is none, and ConfigError for `out` in a store or in the way.
    """
    if is_object_store(cfg.out):
        raise ConfigError("out", cfg.out, "the list of clips is written to a local folder", "give one of this machine")
    out = Path(os.path.abspath(Path(cfg.out).expanduser()))
    if out.exists() and not out.is_dir():
        raise ConfigError("out", cfg.out, "is a file", "give a folder")
    if is_object_store(cfg.src):
        from megavideo.data.ingest.store_source import opened_store

        with opened_store(cfg, out) as store:
            yield store, out
        return
    src = Path(os.path.abspath(Path(cfg.src).expanduser()))
    if not src.exists():
        raise DataError(f"{src}: no such file or folder. Remedy: correct src=")
    yield FolderSource(src if src.is_dir() else src.parent, find_inputs(src, out)), out
