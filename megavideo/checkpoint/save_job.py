"""One save, in a rank's background thread: files first, then notes between ranks, and no collective call.

Every rank writes its files and leaves the note `part_RRRRR` or `failed_RRRRR`. Rank 0 waits for all of them, makes the
checkpoint or gives it up, and tells `saved` or `given_up`, which the others wait for. Where checkpoints are copied, it
goes on: each rank copies its own files and leaves `copied_RRRRR` or `not_copied_RRRRR`, and rank 0 copies the manifest
last and tells `copied` or `not_copied`. At the end each leaves `done_RRRRR`, after which nobody reads the notes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from megavideo.checkpoint.copying import Copies, named_by_rank
from megavideo.checkpoint.manifest import FileEntry, Header, Manifest
from megavideo.checkpoint.notes import Notes
from megavideo.checkpoint.place import Place, SaveId
from megavideo.checkpoint.rank_part import RankPart, manifest_of
from megavideo.checkpoint.retention import Retention
from megavideo.checkpoint.snapshot import RankState
from megavideo.checkpoint.waiting import Patience
from megavideo.errors import CheckpointError, MegavideoError


@dataclass(frozen=True)
class SaveResult:
    """`failure` says why there is no checkpoint, `copy_failure` why there is no copy of it; None where there is.

    `size_bytes` is what this rank wrote.
    """

    failure: str | None = None
    copy_failure: str | None = None
    size_bytes: int = 0


@dataclass(frozen=True)
class SaveTask:
    """What is to be saved. `state` gives the copy of this rank's states, once it is there."""

    save: SaveId
    header: Header
    state: Callable[[], RankState]


@dataclass
class SaveJob:
    """A rank's part in saves to `place`, one after another. `copies` is None where there are none."""

    place: Place
    retention: Retention
    copies: Copies | None
    rank: int
    world_size: int
    patience: Patience
    _cleared: bool = field(default=False, init=False)

    def run(self, task: SaveTask) -> SaveResult:
        """Save, copy, and remove what need not be kept. Raises nothing: a failure is the result."""
        notes = Notes(self.place, task.save, self.rank, self.world_size, self.patience)
        try:
            files, fault = self._write(notes, task)
            if self.rank == 0:
                result = self._lead(notes, task, files, fault)
            else:
                result = self._follow(notes, files)
        except Exception as error:  # noqa: BLE001 - told to the thread that trains
            return SaveResult(failure=f"rank {self.rank}: {_reason(error)}")
        self._clear_up(notes)
        return result

    def _clear_up(self, notes: Notes) -> None:
        """What goes wrong here leaves notes behind, for the next start to remove; the save itself is over."""
        try:
            notes.leave("done")
            if self.rank == 0:
                notes.end()
        except (OSError, MegavideoError) as error:
            logging.getLogger(__name__).warning("%s: its notes stay (%s)", notes.save.name, error)

    def _write(self, notes: Notes, task: SaveTask) -> tuple[list[FileEntry], str]:
        """This rank's files, and what went wrong, which others are told as far as that is possible."""
        try:
            self.place.begin(task.save)
            state = task.state()
            files = self.place.write(task.save, self.rank, state)
            notes.leave("part", RankPart(tuple(files), state.steps, state.shapes).to_json())
        except Exception as error:  # noqa: BLE001 - told to all ranks
            fault = _reason(error)
            if self.rank > 0:
                try:
                    notes.leave("failed", fault)
                except OSError as untold:
                    raise CheckpointError(fault) from untold  # what went wrong first, not that it cannot be told
            return [], fault
        return files, ""

    def _lead(self, notes: Notes, task: SaveTask, files: list[FileEntry], fault: str) -> SaveResult:
        try:
            manifest = self._publish(notes, task, fault)
        except Exception as error:  # noqa: BLE001 - told to all ranks
            failure = str(error) if isinstance(error, CheckpointError) else f"rank 0: {_reason(error)}"
            self.place.give_up(task.save)
            try:
                notes.tell("given_up", failure)
            except OSError as untold:
                logging.getLogger(__name__).warning("%s: other ranks cannot be told (%s)", task.save.name, untold)
            return SaveResult(failure)
        trouble = self.copies.prepare(task.save) if self.copies is not None else ""
        notes.tell("saved", trouble)
        self.retention.apply(manifest)
        if self.copies is not None:
            trouble = trouble or self._lead_copies(notes, self.copies, files, manifest)
            notes.tell("not_copied" if trouble else "copied", trouble)
        return SaveResult(None, trouble or None, _size(files))

    def _publish(self, notes: Notes, task: SaveTask, fault: str) -> Manifest:
        """The finished checkpoint. Raises CheckpointError naming the ranks that failed or said nothing."""
        if fault:
            self.place.begin(task.save)  # others may have to be told, in a folder that could not be made
            notes.leave("failed", fault)
        if not self._cleared:
            self.place.clear(task.save.session)
            self._cleared = True
        faults = notes.faults("part", "failed")
        if faults:
            raise CheckpointError(named_by_rank(faults))
        manifest = manifest_of(task.header, [RankPart.from_json(text) for text in notes.texts("part")])
        self.place.publish(task.save, manifest)
        return manifest

    def _lead_copies(self, notes: Notes, copies: Copies, files: list[FileEntry], manifest: Manifest) -> str:
        copies.copy_files(notes, files)
        try:
            copies.finish(notes, manifest)
        except Exception as error:  # noqa: BLE001 - told to all ranks
            return str(error)
        return ""

    def _follow(self, notes: Notes, files: list[FileEntry]) -> SaveResult:
        """Hear what rank 0 decides, and copy this rank's files where it says so."""
        saved, text = notes.outcome("saved", "given_up")
        if not saved:
            return SaveResult(text)
        if self.copies is None:
            return SaveResult(size_bytes=_size(files))
        if not text:
            self.copies.copy_files(notes, files)
        copied, trouble = notes.outcome("copied", "not_copied")
        return SaveResult(None, None if copied else trouble, _size(files))


def _size(files: list[FileEntry]) -> int:
    return sum(file.size_bytes for file in files)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
