"""The report on a dataset as one page, `report.html`, and its histograms as a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megavideo.config.schema.doctor import DoctorRun
from megavideo.data.ingest.charts import Chart, draw_charts
from megavideo.data.ingest.histogram import Histogram
from megavideo.evaluation.dataset_report import DatasetReport
from megavideo.observe.page import data_uri, render
from megavideo.observe.progress import format_bytes, format_count

PAGE_NAME = "report.html"


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
        Chart(title, axis, Histogram.of(values[columns.kept], values[~columns.kept]), limits)
        for title, axis, values, limits in rows
    ]
    if len(fill):
        charts.append(Chart("Fill of packs", "% of tokens_per_pack", Histogram.of(100 * fill, np.empty(0))))
    return draw_charts(charts)


def page_text(report: DatasetReport, picture: bytes) -> str:
    """The page's HTML, with the picture (PNG) in it."""
    lists = [
        (f"Missing or damaged shards: {len(report.shards.bad):,}", report.shards.bad),
        (f"Samples that fit no pack: {report.dropped_count:,}", report.dropped),
        (f"Clips that were not encoded: {report.not_encoded_count:,}", report.not_encoded),
        (f"Samples with the latent of another: {report.shards.same_content or 0:,}", report.shards.same_content_first),
    ]
    values = {
        "report": report,
        "rows": rows_of(report),
        "histograms": data_uri("image/png", picture),
        "lists": [(title, [(row.name, row.reason) for row in reasons]) for title, reasons in lists],
    }
    return render("dataset.html.j2", values, __package__)


def rows_of(report: DatasetReport) -> list[tuple[str, str]]:
    """Names and values of the report, as people read them."""
    packs, shards = report.packs, report.shards
    rows = [
        ("samples", f"{report.samples:,}: {report.videos:,} videos ({report.video_seconds / 3600:,.2f} h) and "
         f"{report.images:,} images"),
        ("video tokens", f"{format_count(float(report.tokens))}, {report.tokens / report.samples:,.0f} a sample"),
        ("frames a second", report.rates.words if report.rates else "no videos"),
        ("frames of clips", report.frames.words or "not known"),
        ("dropped", f"{report.dropped_count:,} ({report.dropped_share:.2%}) fit no pack"),
        ("not encoded", f"{report.not_encoded_count:,} clips"),
        ("captions cut", f"{report.captions_cut:,} ({report.captions_cut_share:.2%})"),
        ("same sample id", f"{report.same_id:,}"),
        ("latents", "not looked at" if shards.latents is None else
         f"mean {shards.latents.mean:.3g}, standard deviation {shards.latents.std:.3g}"),
        ("same latent", "not looked for" if shards.same_content is None else f"{shards.same_content:,}"),
        ("shards", f"{shards.count:,}, {format_bytes(shards.num_bytes)}; {shards.checked:,} hashed, "
         f"{len(shards.bad):,} missing or damaged"),
    ]  # fmt: skip
    if packs and report.epochs is not None and report.steps_per_epoch is not None:
        rows += [
            ("fill of packs", f"{packs.fill_mean:.1%}, at the worst {packs.fill_worst:.1%}"),
            ("samples a pack", f"{packs.samples_per_pack:.1f}, at the most {packs.max_samples}"),
            ("imbalance", f"{packs.imbalance_mean:.1%} more attention in the busiest rank, at the worst "
             f"{packs.imbalance_worst:.1%}"),
            ("epochs", f"{report.epochs:.3g} in {report.steps:,} steps, {report.steps_per_epoch:,.3g} steps each: "
             f"each sample is seen {report.epochs:,.3g} times"),
        ]  # fmt: skip
    rows.append(("bytes a sample", format_bytes(report.bytes_per_sample)))
    if report.bytes_per_second is not None and report.bytes_per_second_per_gpu is not None:
        each, everything = format_bytes(report.bytes_per_second_per_gpu), format_bytes(report.bytes_per_second)
        rows.append(("stream", f"{each}/s for a GPU, {everything}/s in all"))
    return rows
