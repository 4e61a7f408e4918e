"""The list of clips that ingest writes and encode reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import xxhash

from megavideo.border.fields import Count, Finite
from megavideo.border.files import check_file, open_file, read_lines
from megavideo.border.json_text import parse_json, read_json
from megavideo.border.names import inside_name, shown
from megavideo.border.refused import Refused
from megavideo.data.clips.captions import WeightedCaption
from megavideo.data.clips.media import MediaInfo
from megavideo.data.clips.seek import Anchor
from megavideo.data.storage.open import is_object_store
from megavideo.errors import DataError

CLIPS_NAME = "clips.jsonl"
ROOT_NAME = "ingest.json"
_FORMAT = 2
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class ClipRow(MediaInfo):
    """One usable clip: a window of frames of a file, and the part of the picture that is not letterbox.

    Frames, rate and sizes are those of the window and of what is left of the picture. `file` is relative to the clips'
    root, and `content` the mark of what it held when it was ingested (empty where it is not known). The window begins
    at frame `start`, whose exact time is `start_seconds`: where the clock of the file cannot be sought it is None, and
    `start_digest` and `frame_marks`, by which the pictures of its frames are known again (see `Anchor`), are empty.
    `crop` is left, top, right and bottom in upright pixels of the file, None for the whole picture. `scores` are the
    filters' values. `caption` is the heaviest of its `captions`, which are empty where it has only one.
    """

    clip_id: str
    file: str
    caption: str
    content: str = ""
    start: Count = 0
    start_seconds: Finite | None = None
    start_digest: str = ""
    frame_marks: str = ""
    crop: tuple[Count, Count, Count, Count] | None = None
    scores: dict[str, Finite] = field(default_factory=dict)
    captions: tuple[WeightedCaption, ...] = ()

    def __post_init__(self) -> None:
        """Raise Refused for a file outside the clips' root, and for a crop that holds nothing."""
        inside_name(self.file)
        if self.crop is not None and not (self.crop[0] < self.crop[2] and self.crop[1] < self.crop[3]):
            raise Refused(f"crop {self.crop} is not left, top, right and bottom of a picture")

    @property
    def anchor(self) -> Anchor | None:
        """Where a reader may begin."""
        if self.start_seconds is None:
            return None
        return Anchor(self.start, self.start_seconds, self.start_digest, self.frame_marks)


@dataclass(frozen=True)
class ClipList:
    """An ingested folder: where the clips lie, as `ClipFile` has it, and their rows."""

    place: str
    rows: tuple[ClipRow, ...]

    def path(self, row: ClipRow) -> Path:
        """The file of a row; DataError where the clips lie in a store."""
        return self.root / row.file

    @property
    def root(self) -> Path:
        """The folder of the clips; DataError where they lie in a store."""
        return local_root(self.place)


def clip_line(row: ClipRow) -> bytes:
    """A line of `clips.jsonl`."""
    return json.dumps(asdict(row), ensure_ascii=False).encode() + b"\n"


def root_line(place: Path | str) -> str:
    """The content of `ingest.json`: the folder or address of the clips."""
    return json.dumps({"format": _FORMAT, "root": str(place)}) + "\n"


def local_root(place: str) -> Path:
    """The folder that is the root of clips; DataError where they lie in a store."""
    if is_object_store(place):
        raise DataError(
            f"{place}: the clips of this list lie in a store, and are read from a folder here. Remedy: copy them to a "
            "folder and ingest that, or encode them from the store"
        )
    return Path(place)


@dataclass(frozen=True)
class ClipFile:
    """An ingested folder whose rows are not read yet; there may be more of them than memory holds.

    `place` is the folder or the `s3://` address of the clips.
    """

    folder: Path
    place: str

    @property
    def root(self) -> Path:
        """The folder of the clips; DataError where they lie in a store."""
        return local_root(self.place)

    @property
    def num_bytes(self) -> int:
        """Bytes of the list."""
        return (self.folder / CLIPS_NAME).stat().st_size

    def digest(self) -> str:
        """XXH3 of the list, by which tasks know that they have the same; DataError where it cannot be read."""
        digest = xxhash.xxh3_128()
        try:
            with open_file(self.folder / CLIPS_NAME) as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
        except (OSError, Refused) as error:
            raise _unusable(self.folder, error) from error
        return digest.hexdigest()

    def lines(self) -> Iterator[tuple[bytes, ClipRow]]:
        """Every line with its row; DataError where one is damaged, or there is none."""
        is_empty, number = True, 0
        try:
            with open_file(self.folder / CLIPS_NAME) as file:
                for line in read_lines(file):
                    number += 1
                    if line.strip():
                        is_empty = False
                        yield line.strip() + b"\n", parse_row(line)
        except OSError as error:
            raise _unusable(self.folder, error) from error
        except Refused as error:
            raise _unusable(self.folder, f"line {number}: {error}") from error
        if is_empty:
            raise DataError(f"{self.folder / CLIPS_NAME}: holds no clip. {_remedy(self.folder)}")

    def twice(self, clip_id: str) -> DataError:
        """The error for a clip that is listed more than once."""
        return DataError(f"{self.folder / CLIPS_NAME}: clip_id {clip_id} stands twice. {_remedy(self.folder)}")


def open_clip_file(folder: Path) -> ClipFile:
    """What `ingest` wrote to `folder`; DataError where it is missing or damaged."""
    try:
        head = read_json(folder / ROOT_NAME, _Head)
        check_file(folder / CLIPS_NAME)
        return ClipFile(folder, head.root)
    except (OSError, Refused) as error:
        raise _unusable(folder, error) from error


def read_clip_list(folder: Path) -> ClipList:
    """All that `ingest` wrote to `folder`, in memory; DataError where it is missing or damaged."""
    file = open_clip_file(folder)
    rows = tuple(row for _, row in file.lines())
    seen: set[str] = set()
    for row in rows:
        if row.clip_id in seen:
            raise file.twice(row.clip_id)
        seen.add(row.clip_id)
    return ClipList(file.place, rows)


def _unusable(folder: Path, error: object) -> DataError:
    return DataError(f"{folder}: its {CLIPS_NAME} or {ROOT_NAME} cannot be read ({error}). {_remedy(folder)}")


def _remedy(folder: Path) -> str:
    return f"Remedy: run ingest again with out={folder}"


def parse_row(line: bytes) -> ClipRow:
    """The row of a line; Refused where it is none."""
    return parse_json(line, ClipRow)


@dataclass(frozen=True)
class _Head:
    root: str

    def __post_init__(self) -> None:
        if not self.root or "\0" in self.root:
            raise Refused(f"the root {shown(self.root)} is no folder")
