"""Captions of clips: rows of a JSONL file, or a text file beside each clip.

A row says `"caption": TEXT`, or `"captions": [{"text": TEXT, "weight": W, "source": NAME}, ...]` where a clip has
several of which training draws one by weight; the latter counts where a row has both. A row with a `clip_id` speaks
of one clip of its file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megavideo.border.fields import Positive
from megavideo.border.files import open_file, read_file, read_lines
from megavideo.border.json_text import parse_json
from megavideo.border.names import leads_outside, shown
from megavideo.border.refused import Refused
from megavideo.errors import DataError

GIVEN = "given"
_MOST_SIDECAR_BYTES = 1 << 20
_MOST_NAME = 4096


@dataclass(frozen=True)
class WeightedCaption:
    """One of a clip's captions; it is drawn in proportion to `weight`. `source` tells who wrote it."""

    text: str
    weight: Positive = 1.0
    source: str = GIVEN


@dataclass(frozen=True)
class CaptionNote:
    """Something in a caption file that was not used, and why. `line` counts from 1."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class CaptionTable:
    """Captions by absolute path, with what was left aside on reading.

    `captions` holds the heaviest of each file, `alternatives` all of them, and `of_clips` those of rows with a
    `clip_id`; these count for the file too where it has no others. `unless_found` holds what is to be said of each
    such row whose clip is not there.
    """

    captions: dict[Path, str]
    lines: dict[Path, int]
    notes: tuple[CaptionNote, ...]
    alternatives: dict[Path, tuple[WeightedCaption, ...]] = field(default_factory=dict)
    of_clips: dict[str, tuple[WeightedCaption, ...]] = field(default_factory=dict)
    unless_found: dict[str, CaptionNote] = field(default_factory=dict)

    def of(self, clip_id: str | None, path: Path) -> tuple[WeightedCaption, ...] | None:
        """The captions of a clip, else those of its file; None where there are none."""
        of_clip = None if clip_id is None else self.of_clips.get(clip_id)
        return of_clip or self.alternatives.get(path)

    def unknown(self, known: set[Path]) -> tuple[CaptionNote, ...]:
        """Notes for rows whose file does not exist and is not one of `known`."""
        missing = [path for path in self.captions if path not in known and not path.exists()]
        return tuple(CaptionNote(str(path), self.lines[path], "no such file") for path in missing)


def heaviest(captions: Sequence[WeightedCaption]) -> WeightedCaption:
    """The caption with the largest weight, of equal ones the first."""
    return max(captions, key=lambda caption: caption.weight)


def caption_row(file: str, captions: Sequence[WeightedCaption], clip_id: str | None = None) -> str:
    """One line of a caption file, as `read_caption_table` reads it."""
    row: dict[str, Any] = {"file": file, "caption": heaviest(captions).text}
    row |= {} if clip_id is None else {"clip_id": clip_id}
    row["captions"] = [asdict(caption) for caption in captions]
    return json.dumps(row, ensure_ascii=False) + "\n"


def read_caption_table(path: Path, root: Path) -> CaptionTable:
    """Read rows `{"file": ..., "caption": ...}` or `{"file": ..., "captions": [...]}`; see the module.

    A relative `file` is looked for under `root`, then beside the JSONL. Of several rows for one file, or for one clip
    where they have a `clip_id`, the first counts and the others become notes, as do lines that are no such row. Raises
    DataError where the file cannot be read.
    """
    of_files: dict[Path, CaptionRow] = {}
    of_clips: dict[str, CaptionRow] = {}
    notes: list[CaptionNote] = []
    for row in caption_rows(path, root):
        if isinstance(row, CaptionNote):
            notes.append(row)
            continue
        first = of_files.setdefault(row.path, row) if row.clip_id is None else of_clips.setdefault(row.clip_id, row)
        if first is not row:
            same = "the same caption" if first.captions == row.captions else "another caption"
            notes.append(CaptionNote(row.file, row.line, f"has {same} in line {first.line} already; the first is used"))
    by_file: dict[Path, list[CaptionRow]] = {}
    for row in of_clips.values():
        by_file.setdefault(row.path, []).append(row)
    for clip_path, rows in by_file.items():
        if clip_path not in of_files and len(rows) == 1:
            of_files[clip_path] = rows[0]
        elif clip_path not in of_files:
            reason = f"has captions of {len(rows)} clips of it, found by their clip_id, and none of the whole"
            notes.append(CaptionNote(rows[0].file, rows[0].line, reason))
    return CaptionTable(
        captions={clip: heaviest(row.captions).text for clip, row in of_files.items()},
        lines={clip: row.line for clip, row in of_files.items()},
        notes=tuple(notes),
        alternatives={clip: row.captions for clip, row in of_files.items()},
        of_clips={clip_id: row.captions for clip_id, row in of_clips.items()},
        unless_found={
            clip_id: CaptionNote(row.file, row.line, f"no clip has the clip_id {clip_id}")
            for clip_id, row in of_clips.items()
        },
    )


def read_sidecar_captions(clip: Path, root: Path | None = None) -> tuple[WeightedCaption, ...] | None:
    """The captions in NAME.txt or NAME.json (an object as a row, without `file`) beside the clip, None without one.

    Raises DataError with the reason where the sidecar is there and holds no caption, or leads out of `root` by a link.
    """
    text, table = clip.with_suffix(".txt"), clip.with_suffix(".json")
    path = next((path for path in (text, table) if path.exists() or path.is_symlink()), None)
    if path is None:
        return None
    try:
        if root is not None and leads_outside(root, path):
            raise Refused(f"it is a link that leads outside of {root}, or lies behind one")
        content = read_file(path, _MOST_SIDECAR_BYTES)
        return parse_captions(content) if path == table else (WeightedCaption(content.decode("utf-8-sig").strip()),)
    except OSError as error:
        raise DataError(f"its sidecar {shown(path.name)} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"its sidecar {shown(path.name)} cannot be used: {error}") from error


def parse_captions(content: bytes) -> tuple[WeightedCaption, ...]:
    """The captions of a JSON object with `captions` or `caption`. Raises Refused that tells what it lacks."""
    return parse_json(content, _Captioned).weighted()


@dataclass(frozen=True)
class _Entry:
    text: str
    weight: Positive = 1.0
    source: str = GIVEN

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise Refused('an entry of "captions" without a text under "text"')


@dataclass(frozen=True)
class _Captioned:
    """What a row says of captions; `captions` count where it has both."""

    caption: str | None = None
    captions: tuple[_Entry | str, ...] | None = None

    def weighted(self) -> tuple[WeightedCaption, ...]:
        if self.captions is None:
            if self.caption is None:
                raise Refused('no text under "caption"')
            return (WeightedCaption(self.caption.strip()),)
        if not self.captions:
            raise Refused('no list of captions under "captions"')
        entries = (_Entry(entry) if isinstance(entry, str) else entry for entry in self.captions)
        return tuple(WeightedCaption(entry.text.strip(), entry.weight, entry.source) for entry in entries)


@dataclass(frozen=True, kw_only=True)
class _Listed(_Captioned):
    """A row of a caption file."""

    file: str
    clip_id: str | None = None

    def __post_init__(self) -> None:
        if not self.file.strip():
            raise Refused('no text under "file"')
        if "\0" in self.file or len(self.file) > _MOST_NAME:
            raise Refused(f"{shown(self.file)} is no name of a file")


@dataclass(frozen=True)
class CaptionRow:
    """One row of a caption file: its line, counted from 1, and which byte of the file that begins at.

    `path` is where the row's file is looked for.
    """

    line: int
    offset: int
    file: str
    path: Path
    clip_id: str | None
    captions: tuple[WeightedCaption, ...]


def caption_rows(path: Path, root: Path) -> Iterator[CaptionRow | CaptionNote]:
    """The rows of a caption file, one at a time, and a note for each line that is none.

    Raises DataError where the file cannot be read.
    """
    offset = 0
    try:
        with open_file(path) as file:
            for line, raw in enumerate(read_lines(file), start=1):
                if raw.strip():
                    yield _row_or_note(path, root, line, offset, raw)
                offset += len(raw)
    except (OSError, Refused) as error:
        raise DataError(
            f"{path}: the captions file cannot be read ({getattr(error, 'strerror', error)}). Remedy: correct "
            "captions=, or leave it out to use captions.jsonl or sidecar files beside the clips"
        ) from error


def parse_caption_row(path: Path, root: Path, line: int, offset: int, raw: bytes) -> CaptionRow:
    """The row in line `line` of a caption file, which holds `raw`; Refused where it is none."""
    row = parse_json(raw, _Listed)
    return CaptionRow(line, offset, row.file, _locate(row.file, root, path.parent), row.clip_id, row.weighted())


def _row_or_note(path: Path, root: Path, line: int, offset: int, raw: bytes) -> CaptionRow | CaptionNote:
    try:
        return parse_caption_row(path, root, line, offset, raw)
    except (Refused, OSError) as error:  # an OSError for a name that the file system does not take
        return CaptionNote(path.name, line, f"no row of captions: {error}")


def _locate(file: str, root: Path, beside: Path) -> Path:
    if root == beside:
        return Path(os.path.abspath(root / file))
    under_root, under_table = (Path(os.path.abspath(folder / file)) for folder in (root, beside))
    return under_table if not under_root.exists() and under_table.exists() else under_root
