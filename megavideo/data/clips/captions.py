"""Captions of clips: rows of a JSONL file, or a text file beside each clip.

A row says `"caption": TEXT`, or `"captions": [{"text": TEXT, "weight": W, "source": NAME}, ...]` where a clip has
several of which training draws one by weight; the latter counts where a row has both. A row with a `clip_id` speaks
of one clip of its file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megavideo.errors import DataError

GIVEN = "given"


@dataclass(frozen=True)
class WeightedCaption:
    """One of a clip's captions; it is drawn in proportion to `weight`. `source` tells who wrote it."""

    text: str
    weight: float = 1.0
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
    where they have a `clip_id`, the first counts and the others become notes. Raises DataError, with the line, on
    anything that is no such row.
    """
    of_files: dict[Path, CaptionRow] = {}
    of_clips: dict[str, CaptionRow] = {}
    notes: list[CaptionNote] = []
    for row in caption_rows(path, root):
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


def read_sidecar_captions(clip: Path) -> tuple[WeightedCaption, ...] | None:
    """The captions in NAME.txt or NAME.json (an object as a row, without `file`) beside the clip, None without one.

    Raises DataError with the reason where the sidecar is there and holds no caption.
    """
    text, table = clip.with_suffix(".txt"), clip.with_suffix(".json")
    try:
        if text.is_file():
            return (WeightedCaption(text.read_bytes().decode("utf-8-sig").strip()),)
        if not table.is_file():
            return None
        value = json.loads(table.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"its sidecar cannot be read: {error}") from error
    try:
        return parse_captions(value if isinstance(value, dict) else {})
    except ValueError as error:
        raise DataError(f"its sidecar {table.name} has {error}") from error


def parse_captions(row: Mapping[str, Any]) -> tuple[WeightedCaption, ...]:
    """The captions of an object with `captions` or `caption`. Raises ValueError that tells what it lacks."""
    if row.get("captions") is None:
        if not isinstance(row.get("caption"), str):
            raise ValueError('no text under "caption"')
        return (WeightedCaption(row["caption"].strip()),)
    given = row["captions"]
    if not isinstance(given, list) or not given:
        raise ValueError('no list of captions under "captions"')
    return tuple(_weighted(item) for item in given)


def _weighted(item: Any) -> WeightedCaption:
    value: Any = {"text": item} if isinstance(item, str) else item
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ValueError('an entry of "captions" without a text under "text"')
    weight, source = value.get("weight", 1.0), value.get("source", GIVEN)
    if type(weight) not in (int, float) or not math.isfinite(weight) or weight <= 0:
        raise ValueError(f'a "weight" in "captions" that is no positive number: {weight!r}')
    if not isinstance(source, str):
        raise ValueError(f'a "source" in "captions" that is no text: {source!r}')
    return WeightedCaption(text.strip(), float(weight), source)


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


def caption_rows(path: Path, root: Path) -> Iterator[CaptionRow]:
    """The rows of a caption file, one at a time; DataError, with the line, on anything that is no row."""
    offset = 0
    try:
        with path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                if raw.strip():
                    yield parse_caption_row(path, root, line, offset, raw)
                offset += len(raw)
    except OSError as error:
        raise DataError(
            f"{path}: the captions file cannot be read ({error.strerror}). Remedy: correct captions=, or leave it out "
            "to use captions.jsonl or sidecar files beside the clips"
        ) from error


def parse_caption_row(path: Path, root: Path, line: int, offset: int, raw: bytes) -> CaptionRow:
    """The row in line `line` of a caption file, which holds `raw`; DataError where it is none."""
    row, captions = _checked(path, line, raw)
    return CaptionRow(line, offset, row["file"], _locate(row["file"], root, path.parent), row.get("clip_id"), captions)


def _checked(path: Path, line: int, raw: bytes) -> tuple[dict[str, Any], tuple[WeightedCaption, ...]]:
    remedy = 'Remedy: write each line as {"file": "NAME", "caption": "TEXT"} in UTF-8'
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path}, line {line}: not JSON ({error}). {remedy}") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {line}: not a JSON object. {remedy}")
    if not isinstance(row.get("file"), str) or not row["file"].strip():
        raise DataError(f'{path}, line {line}: no text under "file". {remedy}')
    if row.get("clip_id") is not None and not isinstance(row["clip_id"], str):
        raise DataError(f'{path}, line {line}: "clip_id" is no text. {remedy}')
    try:
        return row, parse_captions(row)
    except ValueError as error:
        raise DataError(f"{path}, line {line}: {error}. {remedy}") from error


def _locate(file: str, root: Path, beside: Path) -> Path:
    if root == beside:
        return Path(os.path.abspath(root / file))
    under_root, under_table = (Path(os.path.abspath(folder / file)) for folder in (root, beside))
    return under_table if not under_root.exists() and under_table.exists() else under_root
