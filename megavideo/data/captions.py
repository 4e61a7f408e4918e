"""Captions of clips: rows of a JSONL file, or a text file beside each clip."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from megavideo.errors import DataError


@dataclass(frozen=True)
class CaptionNote:
    """Something in a caption file that was not used, and why. `line` counts from 1."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class CaptionTable:
    """Captions by absolute path, with what was left aside on reading."""

    captions: dict[Path, str]
    lines: dict[Path, int]
    notes: tuple[CaptionNote, ...]

    def unknown(self, known: set[Path]) -> tuple[CaptionNote, ...]:
        """Notes for rows whose file does not exist and is not one of `known`."""
        missing = [path for path in self.captions if path not in known and not path.exists()]
        return tuple(CaptionNote(str(path), self.lines[path], "no such file") for path in missing)


def read_caption_table(path: Path, root: Path) -> CaptionTable:
    """Read rows `{"file": ..., "caption": ...}`.

    A relative `file` is looked for under `root`, then beside the JSONL. Of several rows for one file the first counts
    and the others become notes. Raises DataError, with the line, on anything that is no such row.
    """
    captions: dict[Path, str] = {}
    lines: dict[Path, int] = {}
    notes: list[CaptionNote] = []
    try:
        raw_lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(
            f"{path}: the captions file cannot be read ({error.strerror}). Remedy: correct captions=, or leave it out "
            "to use captions.jsonl or sidecar files beside the clips"
        ) from error
    for line, raw in enumerate(raw_lines, start=1):
        if not raw.strip():
            continue
        file, caption = _row(path, line, raw)
        clip = _locate(file, root, path.parent)
        if clip in captions:
            same = "the same caption" if captions[clip] == caption else "another caption"
            notes.append(CaptionNote(file, line, f"has {same} in line {lines[clip]} already; the first is used"))
            continue
        captions[clip], lines[clip] = caption, line
    return CaptionTable(captions, lines, tuple(notes))


def read_sidecar(clip: Path) -> str | None:
    """The caption in NAME.txt or NAME.json (`{"caption": ...}`) beside the clip; None where neither is there.

    Raises DataError with the reason where the sidecar is there and holds no caption.
    """
    text, table = clip.with_suffix(".txt"), clip.with_suffix(".json")
    try:
        if text.is_file():
            return text.read_bytes().decode("utf-8-sig").strip()
        if not table.is_file():
            return None
        value = json.loads(table.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"its sidecar cannot be read: {error}") from error
    caption = value.get("caption") if isinstance(value, dict) else None
    if not isinstance(caption, str):
        raise DataError(f'its sidecar {table.name} has no text under "caption"')
    return caption.strip()


def _row(path: Path, line: int, raw: bytes) -> tuple[str, str]:
    remedy = 'Remedy: write each line as {"file": "NAME", "caption": "TEXT"} in UTF-8'
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path}, line {line}: not JSON ({error}). {remedy}") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {line}: not a JSON object. {remedy}")
    for key in ("file", "caption"):
        if not isinstance(row.get(key), str) or (key == "file" and not row[key].strip()):
            raise DataError(f'{path}, line {line}: no text under "{key}". {remedy}')
    return row["file"], row["caption"].strip()


def _locate(file: str, root: Path, beside: Path) -> Path:
    under_root, under_table = (Path(os.path.abspath(folder / file)) for folder in (root, beside))
    return under_table if not under_root.exists() and under_table.exists() else under_root
