"""The last step: from what was measured in each input to the clips that are kept, and the reason for every other."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megavideo.config.schema.clip_filters import FiltersConfig
from megavideo.data.clips.captions import WeightedCaption, heaviest
from megavideo.data.clips.media import MediaInfo
from megavideo.data.ingest.duplicates import Fingerprinted, find_duplicates
from megavideo.data.ingest.filters.choose import Bound, bounds
from megavideo.data.ingest.find import Captions
from megavideo.data.ingest.part import UNREADABLE, Part, Piece
from megavideo.data.ingest.report import CAPTION, DUPLICATE, SHORT, DroppedClip
from megavideo.data.ingest.rows import ClipRow

_SLACK_SECONDS = 1e-3  # clocks of files are rounded


@dataclass(frozen=True)
class Merged:
    """The rows that are kept and all that is dropped, each in the order of files and frames."""

    rows: list[ClipRow]
    dropped: list[DroppedClip]

    def counts(self) -> dict[str, int]:
        """How many were dropped by each kind of reason, most first."""
        counts = Counter(clip.kind for clip in self.dropped)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def merge(parts: Iterable[Part], root: Path, captions: Captions, filters: FiltersConfig) -> Merged:
    """Apply captions, then thresholds, then the search for near-duplicates. `parts` come in the order of files."""
    passed: list[tuple[ClipRow, Fingerprinted]] = []
    dropped: list[DroppedClip] = []
    asked = bounds(filters)
    for part in parts:
        path = root / part.file
        if part.media is None:
            dropped.append(DroppedClip(part.file, part.fault or UNREADABLE, part.reason or ""))
            continue
        media = part.media
        said = [captions.of(clip_id(part, media, piece), path) for piece in part.pieces]
        if not any(said):
            dropped.append(DroppedClip(part.file, CAPTION, captions.faults.get(path, "no caption")))
            continue
        for piece, texts in zip(part.pieces, said, strict=True):
            row = _row(part, media, piece, texts)
            fault = (CAPTION, "no caption") if not texts else _fault(row, filters.min_seconds, asked)
            if fault is not None:
                dropped.append(_dropped(row, *fault))
            else:
                passed.append((row, _compared(row, piece)))
    rows = [row for row, _ in passed]
    if filters.duplicate_bits is not None:
        rows = _without_duplicates(passed, filters.duplicate_bits, dropped)
    return Merged(rows, sorted(dropped, key=lambda clip: (clip.file, clip.start)))


def clip_id(part: Part, media: MediaInfo, piece: Piece) -> str:
    """The name of a clip for good: of its file's name and content, and of its window if that is not the whole file."""
    identity = f"{part.file}\0{part.identity.digest}"
    if (piece.start, piece.frames) != (0, media.frames):
        identity += f"\0{piece.start}\0{piece.frames}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _row(part: Part, media: MediaInfo, piece: Piece, captions: tuple[WeightedCaption, ...]) -> ClipRow:
    width, height = media.width, media.height
    if piece.crop is not None:
        left, top, right, bottom = piece.crop
        width, height = right - left, bottom - top
    return ClipRow(
        clip_id=clip_id(part, media, piece),
        file=part.file,
        content=part.identity.mark,
        frames=piece.frames,
        fps=piece.fps,
        width=width,
        height=height,
        pixel_aspect=media.pixel_aspect,
        is_image=media.is_image,
        caption=heaviest(captions).text if captions else "",
        start=piece.start,
        start_seconds=piece.start_seconds if part.sought else None,
        crop=piece.crop,
        scores=piece.scores,
        captions=captions if len(captions) > 1 else (),
    )


def _fault(row: ClipRow, min_seconds: float, asked: Sequence[Bound]) -> tuple[str, str] | None:
    """The first reason against a clip: kind and words. Images are asked for nothing that takes time."""
    seconds = row.frames / row.fps
    if not row.is_image and seconds < min_seconds - _SLACK_SECONDS:
        return SHORT, f"{seconds:.3g} s are less than min_seconds={min_seconds:g}"
    for bound in asked:
        value = row.scores.get(bound.name)
        if value is None:
            continue
        if bound.minimum is not None and value < bound.minimum:
            return bound.below, f"{bound.name} {value:.4g} is below {bound.minimum:g}"
        if bound.maximum is not None and value > bound.maximum:
            return bound.above, f"{bound.name} {value:.4g} is above {bound.maximum:g}"
    return None


def _compared(row: ClipRow, piece: Piece) -> Fingerprinted:
    return Fingerprinted(
        file=row.file,
        start=row.start,
        pixels=row.width * row.height,
        frames=row.frames,
        is_image=row.is_image,
        seconds=row.frames / row.fps,
        hash_bits=piece.hash_bits,
        colours=piece.colours,
    )


def _without_duplicates(
    passed: list[tuple[ClipRow, Fingerprinted]], most_bits: int, dropped: list[DroppedClip]
) -> list[ClipRow]:
    repeated = find_duplicates([compared for _, compared in passed], most_bits)
    rows: list[ClipRow] = []
    for index, (row, _) in enumerate(passed):
        if index not in repeated:
            rows.append(row)
            continue
        other = passed[repeated[index]][0]
        place = other.file if other.start == 0 else f"{other.file} from frame {other.start}"
        dropped.append(_dropped(row, DUPLICATE, f"repeats {place}"))
    return rows


def _dropped(row: ClipRow, kind: str, reason: str) -> DroppedClip:
    seconds = 0.0 if row.is_image else round(row.frames / row.fps, 3)
    return DroppedClip(row.file, kind, reason, row.clip_id, row.start, row.frames, seconds, row.scores)
