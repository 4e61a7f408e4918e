"""The list of clips that ingest writes and encode reads."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megavideo.data.clips.captions import WeightedCaption
from megavideo.data.clips.media import Anchor, MediaInfo
from megavideo.errors import DataError

CLIPS_NAME = "clips.jsonl"
ROOT_NAME = "ingest.json"
_FORMAT = 2


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


def read_clip_list(folder: Path) -> ClipList:
    """Read what `ingest` wrote to `folder`; DataError where it is missing or damaged."""
    remedy = f"Remedy: run ingest again with out={folder}"
    try:
        root = Path(json.loads((folder / ROOT_NAME).read_bytes())["root"])
        lines = (folder / CLIPS_NAME).read_bytes().splitlines()
        rows = tuple(parse_row(json.loads(line)) for line in lines if line.strip())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: its {CLIPS_NAME} or {ROOT_NAME} cannot be read ({error}). {remedy}") from error
    if not rows:
        raise DataError(f"{folder / CLIPS_NAME}: holds no clip. {remedy}")
    seen: set[str] = set()
    for row in rows:
        if row.clip_id in seen:
            raise DataError(f"{folder / CLIPS_NAME}: clip_id {row.clip_id} stands twice. {remedy}")
        seen.add(row.clip_id)
    return ClipList(root, rows)


def parse_row(values: dict[str, Any]) -> ClipRow:
    """The row of the JSON object on a line; KeyError or TypeError where it is none."""
    crop = values.get("crop")
    captions = tuple(WeightedCaption(**caption) for caption in values.get("captions", ()))
    return ClipRow(**{**values, "crop": tuple(crop) if crop else None, "captions": captions})
