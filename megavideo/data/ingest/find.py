"""Which files are inputs, and which caption each has."""

from __future__ import annotations

import logging
import os
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from megavideo.data.clips.captions import (
    CaptionNote,
    CaptionTable,
    WeightedCaption,
    heaviest,
    read_caption_table,
    read_sidecar_captions,
)
from megavideo.data.clips.media import is_media
from megavideo.errors import DataError

_CAPTIONS_NAME = "captions.jsonl"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captions:
    """The captions of each file and of single clips, why each other file has none, and oddities of the caption file.

    `unless_found` is what is to be said of captions of a single clip that is not there.
    """

    of_files: dict[Path, tuple[WeightedCaption, ...]]
    of_clips: dict[str, tuple[WeightedCaption, ...]]
    faults: dict[Path, str]
    notes: tuple[CaptionNote, ...]
    unless_found: dict[str, CaptionNote]

    def of(self, clip_id: str, path: Path) -> tuple[WeightedCaption, ...]:
        """The captions of a clip, else those of its file; empty where there are none."""
        return self.of_clips.get(clip_id) or self.of_files.get(path, ())

    def notes_for(self, clip_ids: Set[str | None]) -> tuple[CaptionNote, ...]:
        """All that was not used where these are the clips."""
        return self.notes + tuple(note for clip_id, note in self.unless_found.items() if clip_id not in clip_ids)


def find_media(src: Path, out: Path) -> list[Path]:
    """Files of video and images at or under `src`, sorted, without hidden ones and without what lies in `out`.

    Folders that are links are not entered, and told. Raises DataError where there is no file, a folder cannot be
    listed, or a name is not UTF-8, as no list or report could hold it.
    """
    if src.is_file():
        if not is_media(src):
            raise DataError(f"{src}: not a video or image by its suffix. Remedy: give a clip, or a folder of clips")
        found = [src]
    else:
        found = sorted(_below(src, out))
    if not found:
        raise DataError(f"{src}: holds no video or image file. Remedy: point src= at a folder of clips")
    misnamed = [path for path in found if not _is_utf8(path)]
    if misnamed:
        raise DataError(
            f"{len(misnamed)} names of files are not UTF-8, as {os.fsencode(misnamed[0])!r}. Remedy: rename them "
            "(convmv renames many at once)"
        )
    return found


def _below(src: Path, out: Path) -> list[Path]:
    found: list[Path] = []
    links: list[Path] = []
    for folder, subfolders, names in os.walk(src, onerror=_refuse):
        kept = [Path(folder) / name for name in subfolders if not name.startswith(".")]
        subfolders[:] = [path.name for path in kept if path != out]
        links += [path for path in kept if path.is_symlink()]
        found += [Path(folder) / name for name in names if not name.startswith(".") and is_media(Path(name))]
    if links:
        _log.warning(
            "ingest: %d folders are links and are not entered, as %s. To take what they hold, give their target as "
            "src=, or mount it there", len(links), min(links),
        )  # fmt: skip
    return found


def _refuse(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: cannot be listed ({error.strerror}). Remedy: give this user the right to, or move it out "
        "of src="
    ) from error


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def find_captions(files: list[Path], root: Path, own_file: str | None) -> Captions:
    """Captions from `own_file`, else `captions.jsonl` under `root`, and from files beside the clips.

    Raises DataError where a caption file is missing or broken, and where no file has a caption.
    """
    table = _table(root, own_file)
    of_files: dict[Path, tuple[WeightedCaption, ...]] = {}
    faults: dict[Path, str] = {}
    for path in files:
        try:
            captions = table.of(None, path) or read_sidecar_captions(path)
        except DataError as error:
            faults[path] = str(error)
            continue
        if captions and heaviest(captions).text:
            of_files[path] = captions
        else:
            faults[path] = "its caption is empty" if captions else "no caption"
    if not of_files and not table.of_clips:
        raise DataError(
            f"{root}: none of {len(files)} clips has a caption. Remedy: put {_CAPTIONS_NAME} there with lines "
            '{"file": "NAME", "caption": "TEXT"}, or NAME.txt beside each clip, or give captions=FILE'
        )
    return Captions(of_files, table.of_clips, faults, table.notes + table.unknown(set(files)), table.unless_found)


def _table(root: Path, own_file: str | None) -> CaptionTable:
    if own_file is not None:
        path = Path(own_file).expanduser()
        if not path.is_file():
            raise DataError(f"{path}: no such captions file. Remedy: correct captions=, or leave it out")
        return read_caption_table(path, root)
    if (root / _CAPTIONS_NAME).is_file():
        return read_caption_table(root / _CAPTIONS_NAME, root)
    return CaptionTable({}, {}, ())
