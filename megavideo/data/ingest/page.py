"""`report.html`: one file that shows what was kept and dropped, in numbers, histograms and pictures."""

from __future__ import annotations

import hashlib
import html
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from megavideo.config.schema.clip_filters import FiltersConfig
from megavideo.data.ingest.charts import Chart, draw_charts
from megavideo.data.ingest.filters.choose import bounds
from megavideo.data.ingest.merge import Merged
from megavideo.data.ingest.part import Part, read_part
from megavideo.data.ingest.report import DroppedClip, IngestReport
from megavideo.data.ingest.rows import ClipRow

PAGE_NAME = "report.html"
_KEPT_SHOWN, _DROPPED_SHOWN, _FAULTS_SHOWN = 36, 18, 50
_AXES = {
    "change": "levels of 255",
    "motion": "% of the diagonal a second",
    "sharpness": "levels of 255",
    "aesthetic": "0..1",
}
_STYLE = """
:root { --ink: #1d222b; --soft: #5d6675; --line: #e2e6ec; --kept: #1f4e96; --dropped: #b0652a; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7f9; color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.6rem; margin: 0 0 4px; } h2 { font-size: 1.15rem; margin: 36px 0 10px; }
p { color: var(--soft); margin: 0 0 14px; max-width: 90ch; overflow-wrap: anywhere; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; }
.panel { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.value { font-size: 1.9rem; font-weight: 650; line-height: 1.2; font-variant-numeric: tabular-nums; }
.name { color: var(--soft); }
table { border-collapse: collapse; width: 100%; } td, th { padding: 5px 10px 5px 0; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td.count { text-align: right; font-variant-numeric: tabular-nums; width: 7em; } td.kind { width: 9em; }
.bar { height: 10px; border-radius: 3px; background: var(--dropped); min-width: 2px; }
.bar.kept { background: var(--kept); }
.charts img { width: 100%; height: auto; display: block; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(168px, 1fr)); gap: 12px; }
.clip { font-size: 0.78rem; color: var(--soft); overflow-wrap: anywhere; }
.clip .shown { height: 120px; display: flex; align-items: center; justify-content: center; background: #e9edf2;
  border-radius: 6px; overflow: hidden; margin-bottom: 4px; }
.clip img { max-width: 100%; max-height: 100%; } .clip b { color: var(--ink); font-weight: 600; }
"""


def write_page(report: IngestReport, merged: Merged, out: Path, filters: FiltersConfig) -> str:
    """The page's HTML; pictures are read from the parts under `out`."""
    kept = _chosen(merged.rows, _KEPT_SHOWN)
    kinds = list(merged.counts())
    shown = {
        kind: _chosen([clip for clip in merged.dropped if clip.kind == kind and clip.clip_id], _DROPPED_SHOWN)
        for kind in kinds
    }
    pictures = _Pictures(out)
    body = [
        "<h1>Ingest</h1>",
        f"<p>{_text(report.src)} read into {_text(report.out)}</p>",
        _numbers(report),
        "<h2>Clips by outcome</h2>",
        _counts(report),
        "<h2>Histograms</h2>",
        '<div class="panel charts"><img alt="histograms" src="data:image/png;base64,'
        f'{draw_charts(_charts(merged, filters))}"></div>',
        f"<h2>Kept: {len(kept)} of {len(merged.rows):,}</h2>",
        _gallery(pictures.card(row, _about(row)) for row in kept),
    ]
    for kind in kinds:
        if shown[kind]:
            body.append(f"<h2>Dropped as {_text(kind)}: {len(shown[kind])} of {report.dropped_by_kind[kind]:,}</h2>")
            body.append(_gallery(pictures.card(clip, clip.reason) for clip in shown[kind]))
    whole = [clip for clip in merged.dropped if clip.clip_id is None]
    if whole:
        body += [
            f"<h2>Inputs that gave no clip: {min(len(whole), _FAULTS_SHOWN)} of {len(whole):,}</h2>",
            _faults(whole),
        ]
    if report.caption_notes:
        notes = [(f"line {note.line}", note.file, note.reason) for note in report.caption_notes[:_FAULTS_SHOWN]]
        body += [f"<h2>Captions that were not used: {len(report.caption_notes):,}</h2>", _table(notes)]
    head = f'<meta charset="utf-8"><title>Ingest of {_text(report.src)}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body><main>{''.join(body)}</main></body></html>\n"


class _Pictures:
    """Thumbnails of clips, from the parts of their inputs."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._parts: dict[str, Part | None] = {}

    def card(self, clip: ClipRow | DroppedClip, words: str) -> str:
        """A clip's picture above its file, first frame and `words`."""
        if clip.file not in self._parts:
            self._parts[clip.file] = read_part(self._out, clip.file)
        part = self._parts[clip.file]
        pieces = part.pieces if part else ()
        data = next((piece.picture for piece in pieces if piece.start == clip.start), "")
        image = f'<img alt="" loading="lazy" src="data:image/jpeg;base64,{data}">'
        place = f", frame {clip.start}" if clip.start else ""
        below = f"<b>{_text(clip.file)}</b>{place}<br>{_text(words)}"
        return f'<div class="clip"><div class="shown">{image}</div>{below}</div>'


def _chosen(clips: Sequence, most: int) -> list:
    """At most `most` clips: always the same, and a fair choice. In the order given."""
    best = sorted(clips, key=lambda clip: hashlib.sha256(clip.clip_id.encode()).digest())[:most]
    ids = {clip.clip_id for clip in best}
    return [clip for clip in clips if clip.clip_id in ids]


def _numbers(report: IngestReport) -> str:
    values = [
        ("inputs", f"{report.num_inputs:,}"),
        ("inputs kept, in part at least", f"{report.inputs_kept:,}"),
        ("inputs dropped", f"{report.inputs_dropped:,}"),
        ("clips kept", f"{report.num_clips:,}"),
        ("of them images", f"{report.num_images:,}"),
        ("minutes of video kept", f"{report.video_seconds / 60:,.1f}"),
    ]
    panels = (
        f'<div class="panel"><div class="value">{value}</div><div class="name">{name}</div></div>'
        for name, value in values
    )
    return f'<div class="numbers">{"".join(panels)}</div>'


def _counts(report: IngestReport) -> str:
    total = max(1, report.num_clips + report.num_dropped)
    rows = [("kept", report.num_clips), *report.dropped_by_kind.items()]
    lines = []
    for kind, count in rows:
        style = "bar kept" if kind == "kept" else "bar"
        bar = f'<div class="{style}" style="width:{100 * count / total:.2f}%"></div>'
        lines.append(f'<tr><td class="kind">{_text(kind)}</td><td class="count">{count:,}</td><td>{bar}</td></tr>')
    return f'<div class="panel"><table>{"".join(lines)}</table></div>'


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


def _faults(clips: Sequence[DroppedClip]) -> str:
    return _table([(clip.kind, clip.file, clip.reason) for clip in clips[:_FAULTS_SHOWN]])


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    lines = ("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="panel"><table>{"".join(lines)}</table></div>'


def _gallery(cards: Iterable[str]) -> str:
    return f'<div class="clips">{"".join(cards)}</div>'


def _text(value: str) -> str:
    return html.escape(str(value))
