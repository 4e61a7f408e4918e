"""Which files are inputs, and which caption each has."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from megavideo.data.clips.captions import (
    CaptionNote,
    WeightedCaption,
    heaviest,
    read_sidecar_captions,
)
from megavideo.data.clips.formats import is_media, is_other_media, why_not_read
from megavideo.data.ingest.caption_index import CaptionIndex
from megavideo.errors import DataError

CAPTIONS_NAME = "captions.jsonl"

_MOST_NAME = 300  # characters of a path that is too long for the system

_log = logging.getLogger(__name__)


class Captions:
    """The captions of the files under `root`, looked up as they are asked for, and what was not used of them.

    They are those of `own_file`, else of `captions.jsonl` under `root`, and in files beside the clips. The caption file
    is read when first asked for anything. Raises DataError where `own_file` is missing, and then where it is broken.
    `beside` gives the path beside which the sidecar of a file lies, if not its own.
    """

    def __init__(self, root: Path, own_file: str | None, beside: Callable[[str], Path] | None = None) -> None:
        self._root = root
        self._beside = beside or (lambda file: root / file)
        self._path = root / CAPTIONS_NAME if own_file is None else Path(own_file).expanduser()
        if own_file is not None and not self._path.exists():
            raise DataError(f"{self._path}: no such captions file. Remedy: correct captions=, or leave it out")
        self._index: CaptionIndex | None = None

    def close(self) -> None:
        """Close the caption file."""
        if self._index is not None:
            self._index.close()

    def check(self, files: Sequence[str]) -> None:
        """Raise DataError where a caption file is broken, or none of `files` has a caption."""
        index = self._opened()
        if index is not None and index.damaged and not index.has_rows:
            note = index.damaged[0]
            raise DataError(
                f"{self._path}, line {note.line}: {note.reason}, nor is any other line. Remedy: write each line as "
                '{"file": "NAME", "caption": "TEXT"} in UTF-8'
            )
        if (index is not None and index.has_clips) or any(self._look_up(file)[0] for file in files):
            return
        damaged = index.damaged if index is not None else []
        told = f"; {self._path}, line {damaged[0].line}: {damaged[0].reason}" if damaged else ""
        raise DataError(
            f"{self._root}: none of {len(files)} clips has a caption{told}. "
            f"Remedy: put {CAPTIONS_NAME} there with lines "
            '{"file": "NAME", "caption": "TEXT"}, or NAME.txt beside each clip, or give captions=FILE'
        )

    def of(self, file: str, clip_ids: Sequence[str]) -> list[tuple[WeightedCaption, ...]]:
        """The captions of each clip of a file, else those of the file; empty where there are none."""
        of_file, index = self._look_up(file)[0], self._opened()
        if index is None or not index.has_clips:
            return [of_file] * len(clip_ids)
        return [index.of_clip(clip_id) or of_file for clip_id in clip_ids]

    def fault(self, file: str) -> str:
        """Why a file has no caption."""
        return self._look_up(file)[1]

    def unread(self, files: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
        """Files below the root that have a caption and whose suffixes are not read, sorted.

        They are named in the caption file, or are among `others` and have one beside them. `files` are those that are
        read.
        """
        index = self._opened()
        rows = () if index is None else index.others(files)
        found = {name for row in rows if (name := self._name(row.path)) is not None}
        beside = (name for name in others if name not in found and _has_sidecar(self._root / name))
        return tuple(sorted({*found, *beside}))

    def notes(self, files: Sequence[str], all_known: bool) -> tuple[CaptionNote, ...]:
        """What was not used of the caption file, if it was read, and what is strange; `all_known` is for the end."""
        shared = self._shared(files) if all_known else ()
        if self._index is None:
            return shared
        of_clips = self._index.unknown_clips() if all_known else ()
        return (*self._index.notes, *self._index.unknown_files(files), *of_clips, *shared)

    def _name(self, path: Path) -> str | None:
        """The name below the root of a file whose suffix is not read; None for other paths."""
        if not path.is_relative_to(self._root) or is_media(path) or not _is_utf8(str(path)) or not os.path.isfile(path):
            return None
        return path.relative_to(self._root).as_posix()

    def _shared(self, files: Sequence[str]) -> tuple[CaptionNote, ...]:
        """A note where several files have one name but for their suffixes, and one caption beside them."""
        index, notes = self._opened(), list[tuple[Path, list[str]]]()
        for stem, group in groupby(sorted(files, key=_stem), key=_stem):
            names = list(group)
            if len(names) > 1 and _has_sidecar(self._root / names[0]):
                names = [name for name in names if index is None or index.of_file(self._root / name) is None]
                notes += [(self._root / stem, names)] if len(names) > 1 else []
        if not notes:
            return ()
        sidecar = next(path for path in _sidecars(self._root / notes[0][1][0]) if os.path.isfile(path))
        more = f"; {len(notes) - 1} others are shared as well" if len(notes) > 1 else ""
        return (CaptionNote(str(sidecar), 1, f"is the caption of {' and of '.join(notes[0][1])}{more}"),)

    def _opened(self) -> CaptionIndex | None:
        """The rows of the caption file, None without one."""
        if self._index is None and (self._path.exists() or self._path.is_symlink()):
            self._index = CaptionIndex(self._path, self._root)
        return self._index

    def _sidecar(self, file: str) -> tuple[WeightedCaption, ...] | None:
        clip = self._beside(file)  # of a store's input it is a copy, and no link
        return read_sidecar_captions(clip, self._root if clip.is_relative_to(self._root) else None)

    def _look_up(self, file: str) -> tuple[tuple[WeightedCaption, ...], str]:
        """The captions of a file, or why it has none."""
        path, index = self._root / file, self._opened()
        try:
            captions = (index.of_file(path) if index is not None else None) or self._sidecar(file)
        except DataError as error:
            return (), str(error)
        if captions and heaviest(captions).text:
            return captions, ""
        return (), "its caption is empty" if captions else "no caption"


@dataclass
class Found:
    """Names of what lies at or under a folder: `files` that are read, `others` that are media by suffixes not read.

    `refused` are names, as far as they can be written, of what looks like media and is none, each with the reason.
    """

    files: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Sort a name in."""
        path = Path(name)
        if not (is_media(path) or is_other_media(path)):
            return
        if not _is_utf8(name):
            self.refused.append((_writable(name), "its name is not UTF-8 (convmv renames many at once)"))
        else:
            (self.files if is_media(path) else self.others).append(name)


def find_media(src: Path, out: Path) -> list[Path]:
    """Files of video and images at or under `src`, as `find_inputs` finds them; what is refused is told in the log."""
    root = src if src.is_dir() else src.parent
    found = find_inputs(src, out)
    for name, reason in found.refused:
        _log.warning("%s: left out: %s", name, reason)
    return [root / name for name in found.files]


def find_inputs(src: Path, out: Path) -> Found:
    """What lies at or under `src`, sorted, without hidden names and without what lies in `out`.

    Names are relative to `src`, or to its folder. Folders that are links are not entered, and told. Raises DataError
    where there is no file that is read, or a folder cannot be listed.
    """
    found = Found()
    if src.is_file():
        if not is_media(src):
            raise DataError(
                f"{src}: not a video or image: {why_not_read(src)}. Remedy: give a clip, or a folder of clips"
            )
        found.add(src.name)
    else:
        _look_below(src, out, found)
    if not found.files:
        more = f" ({found.refused[0][0]}: {found.refused[0][1]})" if found.refused else ""
        raise DataError(
            f"{src}: holds no video or image file that is read{more}. Remedy: point src= at a folder of clips"
        )
    return Found(sorted(found.files), sorted(found.others), sorted(found.refused))


def _look_below(src: Path, out: Path, found: Found) -> None:
    """Add all names; folders of any depth, as those below one another are kept in a list."""
    links: list[str] = []
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(src / prefix) as entries:
                shown = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise _refuse(error) from error
            found.refused.append((_writable(prefix)[:_MOST_NAME], "this folder lies deeper than a path may be long"))
            continue
        for entry in shown:
            if not entry.is_dir():
                found.add(prefix + entry.name)
            elif entry.is_symlink():
                links.append(entry.path)
            elif Path(entry.path) != out:
                waiting.append(f"{prefix}{entry.name}/")
    if links:
        _log.warning(
            "ingest: %d folders are links and are not entered, as %s. To take what they hold, give their target as "
            "src=, or mount it there", len(links), min(links),
        )  # fmt: skip


def _sidecars(path: Path) -> tuple[Path, Path]:
    return path.with_suffix(".txt"), path.with_suffix(".json")


def _has_sidecar(path: Path) -> bool:
    return any(map(os.path.isfile, _sidecars(path)))


def _stem(name: str) -> str:
    return str(Path(name).with_suffix(""))


def _refuse(error: OSError) -> DataError:
    return DataError(
        f"{error.filename}: cannot be listed ({error.strerror}). Remedy: give this user the right to, or move it out "
        "of src="
    )


def _writable(name: str) -> str:
    """A name as text that any file can hold: bytes that are no UTF-8 as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
