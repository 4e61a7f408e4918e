"""From what was measured in an input to its clips that pass, and the reason against every other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from megavideo.config.schema.clip_filters import FiltersConfig
from megavideo.data.clips.captions import WeightedCaption, heaviest
from megavideo.data.clips.media import MediaInfo
from megavideo.data.ingest.filters.choose import Bound
from megavideo.data.ingest.find import Captions
from megavideo.data.ingest.judged import Judged, dropped_clip
from megavideo.data.ingest.part import LARGE, UNREADABLE, Part, Piece
from megavideo.data.ingest.report import CAPTION, HDR, INTERLACED, SHORT, TRANSITION, DroppedClip
from megavideo.data.ingest.rows import ClipRow
from megavideo.data.ingest.scoring.kept import KeptValues
from megavideo.data.ingest.scoring.stage import Scoring

_SLACK_SECONDS = 1e-3  # clocks of files are rounded


@dataclass(frozen=True)
class Rules:
    """What clips are held to: filters, and what is asked of measures and of scores by models."""

    filters: FiltersConfig
    bounds: tuple[Bound, ...]
    score_bounds: tuple[Bound, ...]


class Judge:
    """Applies captions and thresholds to inputs, one after the other, in the order of files."""

    def __init__(self, captions: Captions, rules: Rules, scoring: Scoring) -> None:
        self._captions = captions
        self._rules = rules
        self.scoring = scoring

    def candidates(self, part: Part) -> list[ClipRow]:
        """The clips of an input that pass all that needs no model."""
        return [row for row, _, fault in self._clips(part) if fault is None]

    def hear(self, part: Part, judged: Judged) -> bool:
        """Let each piece of an input pass, or drop it with the first reason against it.

        False, and nothing is told, where a piece that passes all else still lacks a score.
        """
        clips, known = list(self._clips(part)), self.scoring.known(part.file)
        if any(fault is None and self._waits(known.get(row.clip_id), row) for row, _, fault in clips):
            return False
        if part.media is None:
            judged.drops(DroppedClip(part.file, part.fault or UNREADABLE, part.reason or ""))
        elif self._is_large(part.media):
            size, most = f"{part.media.width}x{part.media.height}", self._rules.filters.max_pixels
            reason = f"has frames of {size} pixels, more than filters.max_pixels={most}"
            judged.drops(DroppedClip(part.file, LARGE, reason))
        elif not clips:
            judged.drops(DroppedClip(part.file, CAPTION, self._captions.fault(part.file)))
        for row, piece, fault in clips:
            kept = known.get(row.clip_id)
            if fault is None and kept is not None:
                row, fault = self._with_scores(row, kept)
            if fault is None:
                judged.passes(row, piece, self.scoring.embedding(kept) if kept is not None else None)
            else:
                judged.drops(dropped_clip(row, *fault))
        return True

    def _clips(self, part: Part) -> Iterator[tuple[ClipRow, Piece, tuple[str, str] | None]]:
        """The pieces of an input that has any caption, and what of all that needs no model is against each."""
        if part.media is None or self._is_large(part.media):
            return
        said = self._captions.of(part.file, [clip_id(part, part.media, piece) for piece in part.pieces])
        if not any(said):
            return
        for piece, texts in zip(part.pieces, said, strict=True):
            row = _row(part, part.media, piece, texts)
            fault: tuple[str, str] | None
            if piece.is_transition:
                fault = TRANSITION, f"{piece.frames} frames dissolve or fade between shots"
            else:
                fault = (CAPTION, "no caption") if not texts else _fault(row, self._rules.filters, self._rules.bounds)
            yield row, piece, fault

    def _is_large(self, media: MediaInfo) -> bool:
        return media.width * media.height > self._rules.filters.max_pixels

    def _waits(self, kept: KeptValues | None, row: ClipRow) -> bool:
        return bool(self.scoring.lacking(kept, row)) and (kept is None or kept.fault is None)

    def _with_scores(self, row: ClipRow, kept: KeptValues) -> tuple[ClipRow, tuple[str, str] | None]:
        """The row with what models gave, and what of that is against it."""
        if kept.fault is not None:
            return row, (UNREADABLE, kept.fault)
        values = {name: value for name, value in self.scoring.values(kept).items() if value is not None}
        row = replace(row, scores=row.scores | values)
        return row, _beyond(row, self._rules.score_bounds)


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
        transfer=media.transfer,
        is_interlaced=media.is_interlaced,
        has_alpha=media.has_alpha,
        is_animation=media.is_animation,
        pages=media.pages,
        holes=media.holes,
        caption=heaviest(captions).text if captions else "",
        start=piece.start,
        start_seconds=piece.start_seconds if part.sought else None,
        start_digest=piece.start_digest if part.sought else "",
        frame_marks=piece.frame_marks if part.sought else "",
        crop=piece.crop,
        scores=piece.scores,
        captions=captions if len(captions) > 1 else (),
    )


def _fault(row: ClipRow, filters: FiltersConfig, asked: Sequence[Bound]) -> tuple[str, str] | None:
    """The first reason against a clip: kind and words. Images are asked for nothing that takes time."""
    if row.transfer != "sdr" and filters.hdr == "drop":
        return HDR, f"is HDR ({row.transfer.upper()}), and filters.hdr=drop"
    if row.is_interlaced and filters.interlaced == "drop":
        return INTERLACED, "is interlaced, and filters.interlaced=drop"
    seconds = row.frames / row.fps
    if not row.is_image and seconds < filters.min_seconds - _SLACK_SECONDS:
        return SHORT, f"{seconds:.3g} s are less than min_seconds={filters.min_seconds:g}"
    return _beyond(row, asked)


def _beyond(row: ClipRow, asked: Sequence[Bound]) -> tuple[str, str] | None:
    for bound in asked:
        value = row.scores.get(bound.name)
        if value is None:
            continue
        if bound.minimum is not None and value < bound.minimum:
            return bound.below, f"{bound.name} {value:.4g} is below {bound.minimum:g}"
        if bound.maximum is not None and value > bound.maximum:
            return bound.above, f"{bound.name} {value:.4g} is above {bound.maximum:g}"
    return None
