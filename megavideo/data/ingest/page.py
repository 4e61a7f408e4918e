"""`report.html`: one file that shows what was kept and dropped, in numbers, histograms and pictures."""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megavideo.config.schema.clip_filters import FiltersConfig
from megavideo.data.ingest.charts import Chart, draw_charts
from megavideo.data.ingest.filters.choose import bounds
from megavideo.data.ingest.merge import Merged
from megavideo.data.ingest.part import Part, read_part
from megavideo.data.ingest.report import DroppedClip, IngestReport
from megavideo.data.ingest.rows import ClipRow
from megavideo.observe.page import data_uri, render

PAGE_NAME = "report.html"
_KEPT_SHOWN, _DROPPED_SHOWN, _FAULTS_SHOWN = 36, 18, 50
_AXES = {
    "change": "levels of 255",
    "motion": "% of the diagonal a second",
    "sharpness": "levels of 255",
    "aesthetic": "0..1",
}


@dataclass(frozen=True)
class _Card:
    """A clip's picture as a data address (empty where there is none), its file and first frame, and what is said."""

    uri: str
    file: str
    start: int
    words: str


def page_text(report: IngestReport, merged: Merged, out: Path, filters: FiltersConfig) -> str:
    """The page's HTML; pictures are read from the parts under `out`."""
    pictures = _Pictures(out)
    shown = {
        kind: _chosen([clip for clip in merged.dropped if clip.kind == kind and clip.clip_id], _DROPPED_SHOWN)
        for kind in merged.counts()
    }
    whole = [clip for clip in merged.dropped if clip.clip_id is None]
    return render(
        "ingest.html.j2",
        {
            "report": report,
            "numbers": _numbers(report),
            "outcomes": _outcomes(report),
            "histograms": data_uri("image/png", draw_charts(_charts(merged, filters))),
            "kept": [pictures.card(row, _about(row)) for row in _chosen(merged.rows, _KEPT_SHOWN)],
            "dropped": [
                (kind, [pictures.card(clip, clip.reason) for clip in clips]) for kind, clips in shown.items() if clips
            ],
            "num_without_clip": len(whole),
            "without_clip": [(clip.kind, clip.file, clip.reason) for clip in whole[:_FAULTS_SHOWN]],
            "notes": [(f"line {note.line}", note.file, note.reason) for note in report.caption_notes[:_FAULTS_SHOWN]],
        },
        __package__,
    )


class _Pictures:
    """Thumbnails of clips, from the parts of their inputs."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._parts: dict[str, Part | None] = {}

    def card(self, clip: ClipRow | DroppedClip, words: str) -> _Card:
        """A clip's picture above its file, first frame and `words`."""
        if clip.file not in self._parts:
            self._parts[clip.file] = read_part(self._out, clip.file)
        part = self._parts[clip.file]
        pieces = part.pieces if part else ()
        data = next((piece.picture for piece in pieces if piece.start == clip.start), "")
        uri = data_uri("image/jpeg", base64.b64decode(data)) if data else ""
        return _Card(uri, clip.file, clip.start, words)


def _chosen(clips: Sequence, most: int) -> list:
    """At most `most` clips: always the same, and a fair choice. In the order given."""
    best = sorted(clips, key=lambda clip: hashlib.sha256(clip.clip_id.encode()).digest())[:most]
    ids = {clip.clip_id for clip in best}
    return [clip for clip in clips if clip.clip_id in ids]


def _numbers(report: IngestReport) -> list[tuple[str, str]]:
    return [
        ("inputs", f"{report.num_inputs:,}"),
        ("inputs kept, in part at least", f"{report.inputs_kept:,}"),
        ("inputs dropped", f"{report.inputs_dropped:,}"),
        ("clips kept", f"{report.num_clips:,}"),
        ("of them images", f"{report.num_images:,}"),
        ("minutes of video kept", f"{report.video_seconds / 60:,.1f}"),
    ]


def _outcomes(report: IngestReport) -> list[tuple[str, int, float]]:
    """Name, number of clips and share (0..1) of each outcome."""
    total = max(1, report.num_clips + report.num_dropped)
    rows = [("kept", report.num_clips), *report.dropped_by_kind.items()]
    return [(kind, count, count / total) for kind, count in rows]


def _charts(merged: Merged, filters: FiltersConfig) -> list[Chart]:
    videos = [row for row in merged.rows if not row.is_image]
    limits = tuple(limit for limit in (filters.min_seconds, filters.max_seconds) if limit is not None)
    charts = [
        Chart("Aspect", "width / height", [row.width * row.pixel_aspect / row.height for row in merged.rows], []),
        Chart(
            "Duration", "seconds", [row.frames / row.fps for row in videos],
            [clip.seconds for clip in merged.dropped if clip.seconds > 0], limits,
        ),
    ]  # fmt: skip
    kept, dropped = _scores(merged.rows), _scores(merged.dropped)
    asked = {bound.name: (bound.minimum, bound.maximum) for bound in bounds(filters)}
    for name in sorted(kept.keys() | dropped.keys(), key=lambda name: (name != "motion", name)):
        thresholds = tuple(limit for limit in asked.get(name, ()) if limit is not None)
        charts.append(Chart(name.capitalize(), _AXES.get(name, ""), kept[name], dropped[name], thresholds))
    return charts


def _scores(clips: Iterable[ClipRow | DroppedClip]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = defaultdict(list)
    for clip in clips:
        for name, value in (clip.scores or {}).items():
            values[name].append(value)
    return values


def _about(row: ClipRow) -> str:
    size = f"{row.width}x{row.height}"
    if row.is_image:
        return size
    return f"{size}, {row.frames / row.fps:.1f} s, motion {row.scores.get('motion', 0.0):.1f}"
