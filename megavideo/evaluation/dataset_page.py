"""The report on a dataset as one page, `report.html`, and its histograms as a picture."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megavideo.config.schema.doctor import DoctorRun
from megavideo.data.ingest.charts import Chart, draw_charts
from megavideo.evaluation.dataset_report import DatasetReport, Reason
from megavideo.observe.progress import format_count

PAGE_NAME = "report.html"
_STYLE = """
:root { --ink: #1d222b; --soft: #5d6675; --line: #e2e6ec; --bad: #b3302b; --good: #2c7a4b; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7f9; color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.6rem; margin: 0 0 4px; } h2 { font-size: 1.15rem; margin: 36px 0 10px; }
p { color: var(--soft); margin: 0 0 14px; overflow-wrap: anywhere; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; }
.panel { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.value { font-size: 1.6rem; font-weight: 650; line-height: 1.2; font-variant-numeric: tabular-nums; }
.name { color: var(--soft); } .bad { border-left: 5px solid var(--bad); } .good { border-left: 5px solid var(--good); }
.bad li, td { overflow-wrap: anywhere; } ul { margin: 6px 0 0; padding-left: 20px; }
table { border-collapse: collapse; width: 100%; } td { padding: 5px 10px 5px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
img { width: 100%; height: auto; display: block; }
"""


@dataclass(frozen=True)
class SampleColumns:
    """Samples as columns: latent [n, 3] sizes, video tokens [n], caption lengths [n], frames a second [n], fits [n]."""

    latent: np.ndarray
    tokens: np.ndarray
    text: np.ndarray
    fps: np.ndarray
    kept: np.ndarray

    @property
    def aspect(self) -> np.ndarray:
        """Width over height of each sample [n]."""
        ratio: np.ndarray = self.latent[:, 2] / self.latent[:, 1]
        return ratio


def draw_histograms(columns: SampleColumns, fill: np.ndarray, cfg: DoctorRun) -> bytes:
    """Histograms of the samples and of how full packs are (`fill` [p], 0..1), as PNG."""
    rows = [
        ("Video tokens", "of a sample", columns.tokens, (float(cfg.tokens_per_pack),)),
        ("Aspect", "width / height", columns.aspect, ()),
        ("Length", "latent frames of a sample", columns.latent[:, 0], ()),
        ("Captions", "text tokens of a sample", columns.text, (float(cfg.text_tokens_per_pack),)),
    ]
    charts = [
        Chart(title, axis, values[columns.kept].tolist(), values[~columns.kept].tolist(), limits)
        for title, axis, values, limits in rows
    ]
    if len(fill):
        charts.append(Chart("Fill of packs", "% of tokens_per_pack", (100 * fill).tolist(), []))
    return base64.b64decode(draw_charts(charts))


def write_page(report: DatasetReport, picture: bytes) -> str:
    """The page's HTML, with the picture (PNG) in it."""
    image = base64.b64encode(picture).decode()
    body = [
        f"<h1>Dataset: {'not ready for this run' if report.faults else 'ready for this run'}</h1>",
        f"<p>{_text(report.data)}, version {report.version}</p>",
        _verdict(report.faults),
        "<h2>Numbers</h2>",
        _numbers(report),
        "<h2>Histograms</h2>",
        f'<div class="panel"><img alt="histograms" src="data:image/png;base64,{image}"></div>',
        _table(f"Missing or damaged shards: {len(report.shards.bad):,}", report.shards.bad),
        _table(f"Samples that fit no pack: {report.dropped_count:,}", report.dropped),
        _table(f"Clips that were not encoded: {report.not_encoded_count:,}", report.not_encoded),
        _table(f"Samples with the latent of another: {report.shards.same_content or 0:,}",
               report.shards.same_content_first),
    ]  # fmt: skip
    head = f'<meta charset="utf-8"><title>Dataset {_text(report.data)}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body><main>{''.join(body)}</main></body></html>\n"


def rows_of(report: DatasetReport) -> list[tuple[str, str]]:
    """Names and values of the report, as people read them."""
    packs, shards = report.packs, report.shards
    rows = [
        ("samples", f"{report.samples:,}: {report.videos:,} videos ({report.video_seconds / 3600:,.2f} h) and "
         f"{report.images:,} images"),
        ("video tokens", f"{format_count(float(report.tokens))}, {report.tokens / report.samples:,.0f} a sample"),
        ("dropped", f"{report.dropped_count:,} ({report.dropped_share:.2%}) fit no pack"),
        ("not encoded", f"{report.not_encoded_count:,} clips"),
        ("captions cut", f"{report.captions_cut:,} ({report.captions_cut_share:.2%})"),
        ("same sample id", f"{report.same_id:,}"),
        ("same latent", "not looked for" if shards.same_content is None else f"{shards.same_content:,}"),
        ("shards", f"{shards.count:,}, {_size(shards.num_bytes)}; {shards.checked:,} hashed, "
         f"{len(shards.bad):,} missing or damaged"),
    ]  # fmt: skip
    if packs and report.epochs is not None and report.steps_per_epoch is not None:
        rows += [
            ("fill of packs", f"{packs.fill_mean:.1%}, at the worst {packs.fill_worst:.1%}"),
            ("samples a pack", f"{packs.samples_per_pack:.1f}, at the most {packs.max_samples}"),
            ("imbalance", f"{packs.imbalance_mean:.1%} more attention in the busiest rank, at the worst "
             f"{packs.imbalance_worst:.1%}"),
            ("epochs", f"{report.epochs:.3g} in {report.steps:,} steps; {report.steps_per_epoch:,.1f} steps each"),
        ]  # fmt: skip
    rows.append(("bytes a sample", _size(report.bytes_per_sample)))
    if report.bytes_per_second is not None and report.bytes_per_second_per_gpu is not None:
        each, everything = _size(report.bytes_per_second_per_gpu), _size(report.bytes_per_second)
        rows.append(("stream", f"{each}/s for a GPU, {everything}/s in all"))
    return rows


def _size(num_bytes: float) -> str:
    """Bytes in three digits or more, in units of a thousand."""
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:,.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def _verdict(faults: Sequence[str]) -> str:
    if not faults:
        return '<div class="panel good">Nothing was found that would stop the run.</div>'
    lines = "".join(f"<li>{_text(fault)}</li>" for fault in faults)
    return f'<div class="panel bad">The run would fail or drop too much:<ul>{lines}</ul></div>'


def _numbers(report: DatasetReport) -> str:
    lines = (f"<tr><td class=name>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in rows_of(report))
    return f'<div class="panel"><table>{"".join(lines)}</table></div>'


def _table(title: str, rows: Sequence[Reason]) -> str:
    if not rows:
        return ""
    lines = (f"<tr><td>{_text(row.name)}</td><td>{_text(row.reason)}</td></tr>" for row in rows)
    return f'<h2>{_text(title)}</h2><div class="panel"><table>{"".join(lines)}</table></div>'


def _text(value: str) -> str:
    return html.escape(str(value))
