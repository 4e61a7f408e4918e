"""`report.html`: one file that shows what was kept and dropped, in numbers, histograms and pictures."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from megavideo.config.schema.prepare import IngestRun
from megavideo.data.ingest.charts import Chart, draw_charts
from megavideo.data.ingest.filters.choose import bounds, score_bounds
from megavideo.data.ingest.histogram import Histogram, Span
from megavideo.data.ingest.part import Part, read_part
from megavideo.data.ingest.report import DroppedClip, IngestReport
from megavideo.data.ingest.rows import ClipRow
from megavideo.data.ingest.tally import ASPECT, DURATION, Tally, treatments
from megavideo.observe.page import data_uri, render

PAGE_NAME = "report.html"
_NOTES_SHOWN = 50
_AXES = {
    "change": "levels of 255",
    "motion": "% of the diagonal a second",
    "sharpness": "levels of 255",
    "aesthetic": "0..1",
    "clip": "cosine",
    "text_area": "share of the picture",
    "watermark": "probability",
    "nsfw": "probability",
    "learned_aesthetic": "scale of the head",
    "codec_motion": "% of the diagonal a second",
}
_TITLES = {"clip": "Caption fit", "nsfw": "NSFW"}


@dataclass(frozen=True)
class _Card:
    """A clip's picture as a data address (empty where there is none), its file and first frame, and what is said."""

    uri: str
    file: str
    start: int
    words: str


def page_text(report: IngestReport, tally: Tally, out: Path, cfg: IngestRun) -> str:
    """The page's HTML; pictures are read from the parts under `out`."""
    pictures = _Pictures(out)
    shown = {kind: tally.dropped_examples[kind].clips for kind in tally.counts if kind in tally.dropped_examples}
    return render(
        "ingest.html.j2",
        {
            "report": report,
            "numbers": _numbers(report),
            "outcomes": _outcomes(report),
            "histograms": data_uri("image/png", draw_charts(_charts(tally, cfg))),
            "kept": [pictures.card(row, _about(row)) for row in tally.kept_examples.clips],
            "dropped": [(kind, [pictures.card(clip, clip.reason) for clip in clips]) for kind, clips in shown.items()],
            "num_without_clip": tally.num_faults,
            "without_clip": [(clip.kind, clip.file, clip.reason) for clip in tally.faults],
            "notes": [(f"line {note.line}", note.file, note.reason) for note in report.caption_notes[:_NOTES_SHOWN]],
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


def _numbers(report: IngestReport) -> list[tuple[str, str]]:
    return [
        ("inputs", f"{report.num_inputs:,}"),
        ("inputs kept, in part at least", f"{report.inputs_kept:,}"),
        ("inputs dropped", f"{report.inputs_dropped:,}"),
        ("clips kept", f"{report.num_clips:,}"),
        ("of them images", f"{report.num_images:,}"),
        ("minutes of video kept", f"{report.video_seconds / 60:,.1f}"),
        *((f"clips kept: {name}", f"{count:,}") for name, count in report.treated.items()),
    ]


def _outcomes(report: IngestReport) -> list[tuple[str, int, float]]:
    """Name, number of clips and share (0..1) of each outcome."""
    total = max(1, report.num_clips + report.num_dropped)
    rows = [("kept", report.num_clips), *report.dropped_by_kind.items()]
    return [(kind, count, count / total) for kind, count in rows]


def _charts(tally: Tally, cfg: IngestRun) -> list[Chart]:
    filters = cfg.filters
    histograms = {ASPECT: Histogram(Span()), DURATION: Histogram(Span())} | tally.histograms
    lengths = tuple(limit for limit in (filters.min_seconds, filters.max_seconds) if limit is not None)
    charts = [
        Chart("Aspect", "width / height", histograms.pop(ASPECT)),
        Chart("Duration", "seconds", histograms.pop(DURATION), lengths),
    ]
    asked = {bound.name: bound for bound in (*bounds(filters), *score_bounds(cfg.scores))}
    for name in sorted(histograms, key=lambda name: (name != "motion", name)):
        limits = (asked[name].minimum, asked[name].maximum) if name in asked else (None, None)
        thresholds = tuple(limit for limit in limits if limit is not None)
        axis = ", ".join(words for words in (_AXES.get(name, ""), _kept(*limits)) if words)
        title = _TITLES.get(name, name.capitalize().replace("_", " "))
        charts.append(Chart(title, axis, histograms[name], thresholds))
    return charts


def _kept(minimum: float | None, maximum: float | None) -> str:
    """Thresholds in words: a line shows only those among the values."""
    if minimum is not None and maximum is not None:
        return f"kept from {minimum:g} to {maximum:g}"
    return f"kept from {minimum:g}" if minimum is not None else "" if maximum is None else f"kept up to {maximum:g}"


def _about(row: ClipRow) -> str:
    words = [f"{row.width}x{row.height}"]
    if not row.is_image:
        words += [f"{row.frames / row.fps:.1f} s", f"motion {row.scores.get('motion', 0.0):.1f}"]
    return ", ".join([*words, *treatments(row)])
