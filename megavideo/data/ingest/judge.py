"""From what was measured in an input to its clips that pass, and the reason against every other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from megavideo.config.schema.clip_filters import FiltersConfig
from megavideo.data.clips.captions import WeightedCaption, heaviest
from megavideo.data.clips.media import MediaInfo
from megavideo.data.ingest.filters.choose import Bound, bounds
from megavideo.data.ingest.find import Captions
from megavideo.data.ingest.judged import Judged, dropped_clip
from megavideo.data.ingest.part import UNREADABLE, Part, Piece
from megavideo.data.ingest.report import CAPTION, SHORT, DroppedClip
from megavideo.data.ingest.rows import ClipRow

_SLACK_SECONDS = 1e-3  # clocks of files are rounded


class Judge:
    """Applies captions and thresholds to inputs, one after the other, in the order of files."""

    def __init__(self, captions: Captions, filters: FiltersConfig, judged: Judged) -> None:
        self._captions = captions
        self._min_seconds = filters.min_seconds
        self._bounds = bounds(filters)
        self._judged = judged

    def hear(self, part: Part) -> None:
        """Let each piece of an input pass, or drop it with the first reason against it."""
        if part.media is None:
            self._judged.drops(DroppedClip(part.file, part.fault or UNREADABLE, part.reason or ""))
            return
        said = self._captions.of(part.file, [clip_id(part, part.media, piece) for piece in part.pieces])
        if not any(said):
            self._judged.drops(DroppedClip(part.file, CAPTION, self._captions.fault(part.file)))
            return
        for piece, texts in zip(part.pieces, said, strict=True):
            row = _row(part, part.media, piece, texts)
            fault = (CAPTION, "no caption") if not texts else _fault(row, self._min_seconds, self._bounds)
            if fault is None:
                self._judged.passes(row, piece)
            else:
                self._judged.drops(dropped_clip(row, *fault))


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
