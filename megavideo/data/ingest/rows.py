"""The list of clips that ingest writes and encode reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from megavideo.data.clips.captions import WeightedCaption
from megavideo.data.clips.media import Anchor, MediaInfo
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
    at frame `start`, whose exact time is `start_seconds` (None where the clock of the file cannot be sought). `crop` is
    left, top, right and bottom in upright pixels of the file, None for the whole picture. `scores` are the filters'
    values. `caption` is the heaviest of its `captions`, which are empty where it has only one.
    """

    clip_id: str
    file: str
    caption: str
    content: str = ""
    start: int = 0
    start_seconds: float | None = None
    crop: tuple[int, int, int, int] | None = None
    scores: dict[str, float] = field(default_factory=dict)
    captions: tuple[WeightedCaption, ...] = ()

    @property
    def anchor(self) -> Anchor | None:
        """Where a reader may begin."""
        return None if self.start_seconds is None else Anchor(self.start, self.start_seconds)


@dataclass(frozen=True)
class ClipList:
    """An ingested folder: the root of the clips and their rows."""

    root: Path
    rows: tuple[ClipRow, ...]

    def path(self, row: ClipRow) -> Path:
        """The file of a row."""
        return self.root / row.file


def clip_line(row: ClipRow) -> bytes:
    """A line of `clips.jsonl`."""
    return json.dumps(asdict(row), ensure_ascii=False).encode() + b"\n"


def root_line(root: Path) -> str:
    """The content of `ingest.json`."""
    return json.dumps({"format": _FORMAT, "root": str(root)}) + "\n"


@dataclass(frozen=True)
class ClipFile:
    """An ingested folder whose rows are not read yet; there may be more of them than memory holds."""

    folder: Path
    root: Path

    @property
    def num_bytes(self) -> int:
        """Bytes of the list."""
        return (self.folder / CLIPS_NAME).stat().st_size

    def digest(self) -> str:
        """XXH3 of the list, by which tasks know that they have the same; DataError where it cannot be read."""
        digest = xxhash.xxh3_128()
        try:
            with (self.folder / CLIPS_NAME).open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
        except OSError as error:
            raise _unusable(self.folder, error) from error
        return digest.hexdigest()

    def lines(self) -> Iterator[tuple[bytes, ClipRow]]:
        """Every line with its row; DataError where one is damaged, or there is none."""
        is_empty = True
        try:
            with (self.folder / CLIPS_NAME).open("rb") as file:
                for line in file:
                    if line.strip():
                        is_empty = False
                        yield line.strip() + b"\n", parse_row(json.loads(line))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unusable(self.folder, error) from error
        if is_empty:
            raise DataError(f"{self.folder / CLIPS_NAME}: holds no clip. {_remedy(self.folder)}")

    def twice(self, clip_id: str) -> DataError:
        """The error for a clip that is listed more than once."""
        return DataError(f"{self.folder / CLIPS_NAME}: clip_id {clip_id} stands twice. {_remedy(self.folder)}")


def open_clip_file(folder: Path) -> ClipFile:
    """What `ingest` wrote to `folder`; DataError where it is missing or damaged."""
    try:
        return ClipFile(folder, Path(json.loads((folder / ROOT_NAME).read_bytes())["root"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
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
    return ClipList(file.root, rows)


def _unusable(folder: Path, error: Exception) -> DataError:
    return DataError(f"{folder}: its {CLIPS_NAME} or {ROOT_NAME} cannot be read ({error}). {_remedy(folder)}")


def _remedy(folder: Path) -> str:
    return f"Remedy: run ingest again with out={folder}"


def parse_row(values: dict[str, Any]) -> ClipRow:
    """The row of the JSON object on a line; KeyError or TypeError where it is none."""
    crop = values.get("crop")
    captions = tuple(WeightedCaption(**caption) for caption in values.get("captions", ()))
    return ClipRow(**{**values, "crop": tuple(crop) if crop else None, "captions": captions})
