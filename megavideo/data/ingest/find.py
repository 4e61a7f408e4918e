"""Which files are inputs, and which caption each has."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from megavideo.data.clips.captions import CaptionNote, WeightedCaption, heaviest, read_sidecar_captions
from megavideo.data.clips.media import is_media
from megavideo.data.ingest.caption_index import CaptionIndex
from megavideo.errors import DataError

_CAPTIONS_NAME = "captions.jsonl"

_log = logging.getLogger(__name__)


class Captions:
    """The captions of the files under `root`, looked up as they are asked for, and what was not used of them.

    They are those of `own_file`, else of `captions.jsonl` under `root`, and in files beside the clips. The caption file
    is read when first asked for anything. Raises DataError where `own_file` is missing, and then where it is broken.
    """

    def __init__(self, root: Path, own_file: str | None) -> None:
        self._root = root
        self._path = root / _CAPTIONS_NAME if own_file is None else Path(own_file).expanduser()
        if own_file is not None and not self._path.is_file():
            raise DataError(f"{self._path}: no such captions file. Remedy: correct captions=, or leave it out")
        self._index: CaptionIndex | None = None

    def close(self) -> None:
        """Close the caption file."""
        if self._index is not None:
            self._index.close()

    def check(self, files: Sequence[str]) -> None:
        """Raise DataError where a caption file is broken, or none of `files` has a caption."""
        index = self._opened()
        if (index is not None and index.has_clips) or any(self._look_up(file)[0] for file in files):
            return
        raise DataError(
            f"{self._root}: none of {len(files)} clips has a caption. Remedy: put {_CAPTIONS_NAME} there with lines "
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

    def notes(self, files: Sequence[str], all_known: bool) -> tuple[CaptionNote, ...]:
        """Rows of the caption file, if it was read, that were not used; `all_known` is when all clips are known."""
        if self._index is None:
            return ()
        of_clips = self._index.unknown_clips() if all_known else ()
        return (*self._index.notes, *self._index.unknown_files(files), *of_clips)

    def _opened(self) -> CaptionIndex | None:
        """The rows of the caption file, None without one."""
        if self._index is None and self._path.is_file():
            self._index = CaptionIndex(self._path, self._root)
        return self._index

    def _look_up(self, file: str) -> tuple[tuple[WeightedCaption, ...], str]:
        """The captions of a file, or why it has none."""
        path, index = self._root / file, self._opened()
        try:
            captions = (index.of_file(path) if index is not None else None) or read_sidecar_captions(path)
        except DataError as error:
            return (), str(error)
        if captions and heaviest(captions).text:
            return captions, ""
        return (), "its caption is empty" if captions else "no caption"


def find_media(src: Path, out: Path) -> list[Path]:
    """Files of video and images at or under `src`, as `find_inputs` finds them."""
    root = src if src.is_dir() else src.parent
    return [root / name for name in find_inputs(src, out)]


def find_inputs(src: Path, out: Path) -> list[str]:
    """Names of video and images at or under `src`, sorted, without hidden ones and without what lies in `out`.

    They are relative to `src`, or to its folder. Folders that are links are not entered, and told. Raises DataError
    where there is no file, a folder cannot be listed, or a name is not UTF-8, as no list or report could hold it.
    """
    if src.is_file():
        if not is_media(src):
            raise DataError(f"{src}: not a video or image by its suffix. Remedy: give a clip, or a folder of clips")
        found = [src.name]
    else:
        found = sorted(_below(src, out))
    if not found:
        raise DataError(f"{src}: holds no video or image file. Remedy: point src= at a folder of clips")
    misnamed = [name for name in found if not _is_utf8(name)]
    if misnamed:
        raise DataError(
            f"{len(misnamed)} names of files are not UTF-8, as {os.fsencode(src / misnamed[0])!r}. Remedy: rename them "
            "(convmv renames many at once)"
        )
    return found


def _below(src: Path, out: Path) -> list[str]:
    found: list[str] = []
    links: list[Path] = []
    for folder, subfolders, names in os.walk(src, onerror=_refuse):
        kept = [Path(folder) / name for name in subfolders if not name.startswith(".")]
        subfolders[:] = [path.name for path in kept if path != out]
        links += [path for path in kept if path.is_symlink()]
        below = Path(folder).relative_to(src).as_posix()
        prefix = "" if below == "." else f"{below}/"
        found += [prefix + name for name in names if not name.startswith(".") and is_media(Path(name))]
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


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
