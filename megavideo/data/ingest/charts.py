"""Histograms of clips as one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megavideo.data.ingest.histogram import Histogram

_KEPT, _DROPPED, _BOUND = "#1f4e96", "#d98a5b", "#b3302b"
_GRID, _TEXT = "#e3e6ea", "#20242c"
_COLUMNS = 3
_LINEAR = 10  # clips, up to which an axis is linear


@dataclass(frozen=True)
class Chart:
    """Kept and dropped clips along one axis, and the thresholds that lie on it."""

    title: str
    axis: str
    histogram: Histogram
    thresholds: tuple[float, ...] = ()


def draw_charts(charts: Sequence[Chart]) -> bytes:
    """All charts in a grid, as PNG. The object API is used: pyplot would hold every figure in a global."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(charts) // _COLUMNS)
    figure = Figure(figsize=(4.0 * _COLUMNS, 2.7 * rows), facecolor="white")
    FigureCanvasAgg(figure)
    # Margins in inches: a layout engine would draw everything twice.
    figure.subplots_adjust(
        left=0.6 / (4.0 * _COLUMNS), right=1 - 0.15 / (4.0 * _COLUMNS), wspace=0.22,
        bottom=0.5 / (2.7 * rows), top=1 - 0.35 / (2.7 * rows), hspace=0.45,
    )  # fmt: skip
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for panel, chart in zip(panels, charts, strict=False):
        _draw(panel, chart)
    for panel in panels[len(charts) :]:
        panel.set_axis_off()
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


def _draw(axes: Any, chart: Chart) -> None:
    from matplotlib.ticker import MaxNLocator

    (low, high), edges = chart.histogram.limits, chart.histogram.edges
    kept, dropped = np.array(chart.histogram.kept), np.array(chart.histogram.dropped)
    axes.stairs(kept, edges, fill=True, color=_KEPT, label=f"kept, {kept.sum():,}")
    if dropped.any():
        label = f"dropped, {dropped.sum():,}"
        axes.stairs(kept + dropped, edges, baseline=kept, fill=True, color=_DROPPED, label=label)
    for threshold in chart.thresholds:
        if low <= threshold <= high:
            axes.axvline(threshold, color=_BOUND, linewidth=1.2, linestyle="--")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))  # so that values with many digits stand apart
    axes.set_title(chart.title, loc="left", fontsize=11)
    axes.set_xlabel(chart.axis, fontsize=9)
    if (kept + dropped).max() > _LINEAR:
        # Few clips of one kind beside many of another stay visible.
        axes.set_yscale("symlog", linthresh=_LINEAR)
        axes.minorticks_off()
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylim(0, None if (kept + dropped).any() else 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_TEXT, labelsize=8)
    # beside the title, where no bar is
    axes.legend(
        frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 0.98), borderaxespad=0.0,
        handlelength=1.0, handletextpad=0.4, columnspacing=0.9,
    )  # fmt: skip
