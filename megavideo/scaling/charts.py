"""Pictures of a fit: losses over size by budget, best sizes and losses over compute, and errors of the law."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from megavideo.observe.report.charts import Picture
from megavideo.scaling.isoflop import Parabola
from megavideo.scaling.law import Law, TokenCost, optimum
from megavideo.scaling.points import Points
from megavideo.scaling.report import FitReport

_LINE, _SECOND, _LATE, _GRID, _TEXT, _SOFT = "#1f4e96", "#b0652a", "#7a4fa3", "#e3e6ea", "#20242c", "#5d6675"
_WIDE, _HALF = 11.2, 5.5  # inches
_DPI = 120
_MOST_NAMED = 12  # budgets in a legend
_COLOURS = {"projection": _LINE, "huber": _SECOND}
_NAMES = {"projection": "variable projection", "huber": "Huber"}


def draw_fit(report: FitReport, points: Points) -> list[Picture]:
    """All of them."""
    return [_isoflop(report, points), _best_sizes(report, points), _frontier(report, points), _errors(report, points)]


def _isoflop(report: FitReport, points: Points) -> Picture:
    from matplotlib import colormaps

    figure, axes = _figure(_WIDE, 4.6)
    budgets = np.unique(points.budget)
    shades = colormaps["viridis"](np.linspace(0.05, 0.9, len(budgets)))
    vertices = {parabola.budget: parabola for parabola in report.isoflop.parabolas}
    for budget, shade in zip(budgets, shades, strict=True):
        own = points.take(points.budget == budget)
        label = f"{budget:.2g}" if len(budgets) <= _MOST_NAMED else None
        axes.plot(own.params, own.loss, "o", markersize=4, color=shade, label=label)
        if len(np.unique(own.params)) > 1:
            _draw_budget(axes, own, report.chosen.law, report.cost, shade)
        if budget in vertices:
            _draw_vertex(axes, vertices[float(budget)], shade)
    _log_axes(axes, "parameters", "loss")
    _limit_loss(axes, points)
    if len(budgets) <= _MOST_NAMED:
        axes.legend(frameon=False, fontsize=8, title="FLOPs", title_fontsize=8, loc="upper right", ncols=2)
    about = (
        "Points of one budget in one colour; strong lines are the law, dashed ones parabolas through the points, and "
        "crosses their lowest points."
    )
    return Picture("Loss over size at equal compute", about, _png(figure), wide=True)


def _draw_budget(axes: Any, own: Points, law: Law, cost: TokenCost, shade: Any) -> None:
    sizes = np.geomspace(own.params.min() / 1.3, own.params.max() * 1.3, 100)
    axes.plot(sizes, law.loss(sizes, cost.tokens(sizes, float(own.budget[0]))), color=shade, linewidth=1.5)


def _draw_vertex(axes: Any, parabola: Parabola, shade: Any) -> None:
    sizes = np.geomspace(parabola.smallest, parabola.largest, 60)
    loss = parabola.lowest + parabola.curvature * np.log(sizes / parabola.params) ** 2
    axes.plot(sizes, loss, "--", color=shade, linewidth=1.0)
    if parabola.smallest / 2 <= parabola.params <= parabola.largest * 2:
        axes.plot([parabola.params], [parabola.lowest], "x", markersize=8, color=shade)


def _best_sizes(report: FitReport, points: Points) -> Picture:
    figure, axes = _figure(_HALF, 3.6)
    compute = _compute(report, points)
    for fitted in report.laws:
        best = [optimum(fitted.law, report.cost, float(flops)).params for flops in compute]
        axes.plot(compute, best, color=_COLOURS[fitted.method], linewidth=1.8, label=_NAMES[fitted.method])
    isoflop = report.isoflop
    if isoflop.parabolas:
        axes.plot([p.budget for p in isoflop.parabolas], [p.params for p in isoflop.parabolas], "x", color=_LATE,
                  label="parabolas")  # fmt: skip
    if isoflop.size_law is not None:
        axes.plot(compute, isoflop.size_law.at(compute), "--", color=_LATE, linewidth=1.1)
    _mark_budget(axes, report)
    _log_axes(axes, "training FLOPs", "best parameters", both=True)
    axes.legend(frameon=False, fontsize=8)
    return Picture("Best size over compute", "By each method; the dotted line is the budget that was asked for.",
                   _png(figure))  # fmt: skip


def _frontier(report: FitReport, points: Points) -> Picture:
    figure, axes = _figure(_HALF, 3.6)
    compute = _compute(report, points)
    axes.plot(points.flops, points.loss, "o", markersize=3.5, color=_SOFT, label="runs")
    for fitted in report.laws:
        best = [optimum(fitted.law, report.cost, float(flops)).loss for flops in compute]
        axes.plot(compute, best, color=_COLOURS[fitted.method], linewidth=1.8, label=_NAMES[fitted.method])
    _mark_budget(axes, report)
    _log_axes(axes, "training FLOPs", "loss")
    _limit_loss(axes, points, float(report.chosen.optimum.loss))
    axes.legend(frameon=False, fontsize=8)
    return Picture("Loss over compute", "Runs, and what the best spending of each budget comes to.", _png(figure))


def _errors(report: FitReport, points: Points) -> Picture:
    figure, axes = _figure(_WIDE, 2.8)
    error = 100 * np.expm1(np.log(report.chosen.law.loss(points.params, points.tokens) / points.loss))
    drawn = axes.scatter(points.flops, error, c=np.log10(points.params), cmap="viridis", s=18)
    axes.axhline(0, color=_SOFT, linewidth=0.9)
    _log_axes(axes, "training FLOPs", "predicted less measured, %")
    bar = figure.colorbar(drawn, ax=axes, pad=0.01)
    bar.set_label("log10 of parameters", fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    return Picture("Errors of the law", "Of each run; a pattern over compute or size says that the law is not all.",
                   _png(figure), wide=True)  # fmt: skip


def _compute(report: FitReport, points: Points) -> np.ndarray:
    low, high = float(points.flops.min()), max(float(points.flops.max()), report.budget)
    return np.geomspace(low / 1.5, high * 1.5, 80)


def _mark_budget(axes: Any, report: FitReport) -> None:
    axes.axvline(report.budget, color=_SOFT, linestyle=":", linewidth=1.1)


def _limit_loss(axes: Any, points: Points, *more: float) -> None:
    """All points but the highest few, which would press the others into a line."""
    low, high = min(float(points.loss.min()), *more, np.inf), float(np.quantile(points.loss, 0.98))
    pad = 0.08 * (high - low) or 0.1 * high
    axes.set_ylim(low - pad, high + pad)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches and its axes; pyplot would hold every figure in a global."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_TEXT, labelsize=8)
    return figure, axes


def _log_axes(axes: Any, x: str, y: str, *, both: bool = False) -> None:
    axes.set_xscale("log")
    if both:
        axes.set_yscale("log")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)


def _png(figure: Any) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI)
    return data.getvalue()
