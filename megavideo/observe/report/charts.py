"""Curves of a run over its steps, with its stages, restarts and skipped steps marked, each as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megavideo.observe.progress import format_count
from megavideo.observe.report.series import Curve, Series, curve, curves_by_stage, smoothed
from megavideo.observe.rows import Row

_RAW, _LINE, _SECOND, _BAD, _LATE = "#9db7dd", "#1f4e96", "#b0652a", "#b3302b", "#7a4fa3"
_GRID, _TEXT, _SOFT, _SHADE = "#e3e6ea", "#20242c", "#5d6675", "#eef2f7"
_WIDE, _HALF = 11.2, 5.5  # inches
_MARGINS = (0.72, 0.1, 0.48, 0.26)  # inches: left, right, bottom, top
_DPI = 120
_STREAM = (("stream_megabytes_per_second", "read"), ("stream_fetched_megabytes_per_second", "fetched"))


@dataclass(frozen=True)
class Marks:
    """What is drawn behind every curve: (name, first step, last step) of stages, and steps at which something was."""

    stages: tuple[tuple[str, int, int], ...]
    restarts: tuple[int, ...]
    rollbacks: tuple[int, ...]
    skipped: tuple[int, ...]


@dataclass(frozen=True)
class Picture:
    """A chart as PNG, what it shows, and whether it takes the whole width of the page."""

    title: str
    about: str
    png: bytes
    wide: bool = False


@dataclass(frozen=True)
class Line:
    """One curve of a panel, in parts that do not join, as stages do not."""

    label: str
    parts: tuple[Curve, ...]
    colour: Any = _LINE
    smooth: bool = True


@dataclass(frozen=True)
class Panel:
    """Curves on one pair of axes."""

    axis: str
    lines: tuple[Line, ...]
    from_zero: bool = False
    logarithmic: bool = False


def draw_loss(series: Series, marks: Marks, validations: Sequence[Row]) -> Picture | None:
    """The training loss, raw and smoothed within each stage, and the loss on held-out clips."""
    losses = np.where(series.applied(), series.column("loss"), np.nan)  # skipped steps are marked instead
    parts = curves_by_stage(series, losses)
    if not parts:
        return None
    figure, (axes,) = _figure(1, _WIDE, 4.2)
    _dress(axes, marks, named=True)
    line = Line("", parts)
    _draw(axes, line, ("each step", "smoothed"))
    values = [_range(line)]
    for name, colour, label in (("loss", _SECOND, "held-out clips"), ("loss_ema", _LATE, "held-out clips, average")):
        points = _exact([(row["step"], row.get(name)) for row in validations])
        if len(points.mean):
            axes.plot(points.steps, points.mean, "o", markersize=3.5, color=colour, label=label)
            values.append(points.mean)
    _limit(axes, np.concatenate(values))
    axes.set_ylabel("loss")
    axes.set_xlabel("step")
    axes.legend(frameon=False, loc="upper right", fontsize=9)
    about = "Each step, its mean smoothed within a stage, and the loss on clips that are not trained on."
    return Picture("Loss", about, _png(figure), wide=True)


def draw_training(series: Series, marks: Marks) -> list[Picture]:
    """Gradient norm, learning rate, memory, saves, speed and the data stream: those that were recorded."""

    def lines(*named: tuple[str, str], scale: float = 1.0, smooth: bool = True) -> tuple[Line, ...]:
        return tuple(
            Line(label, curves_by_stage(series, scale * series.column(name)), colour, smooth)
            for (name, label), colour in zip(named, (_LINE, _SECOND), strict=False)
        )

    def over_steps(title: str, about: str, *panels: Panel) -> Picture | None:
        return _over_steps(title, about, marks, panels)

    pictures = [
        over_steps("Gradient norm", "Before clipping, on a logarithmic axis.",
                   Panel("norm", lines(("grad_norm", "")), logarithmic=True)),
        over_steps("Learning rate", "Of the optimizer at each step.",
                   Panel("rate", lines(("learning_rate", ""), smooth=False), from_zero=True)),
        over_steps("Memory", "Peaks of the first rank since its start.",
                   Panel("GB", lines(("host_memory_gb", "host"), ("device_memory_gb", "device"), smooth=False),
                         from_zero=True)),
        draw_saves(series, marks),
        over_steps("Speed", "Video tokens and time of a step, over all ranks.",
                   Panel("tokens/s", lines(("tokens_per_second", "")), from_zero=True),
                   Panel("s/step", lines(("seconds", "")), from_zero=True)),
        over_steps("Use of the hardware", "Model FLOPs utilisation, and how full the packs are.",
                   Panel("MFU, %", lines(("mfu", ""), scale=100), from_zero=True),
                   Panel("fill, %", lines(("fill", ""), scale=100))),
        over_steps("Data stream", "What the first rank's node reads, and what it fetches from the store for it.",
                   Panel("MB/s", lines(*_STREAM), from_zero=True)),
        over_steps("Waiting for data", "Time of a step in which the first rank's node had nothing to train on.",
                   Panel("s", lines(("stream_wait_seconds", "")), from_zero=True)),
    ]  # fmt: skip
    return [picture for picture in pictures if picture is not None]


def draw_average(validations: Sequence[Row], marks: Marks) -> Picture | None:
    """The loss on held-out clips by the weights and by their average."""
    named = (("loss", "weights", _SECOND), ("loss_ema", "average", _LATE))
    lines = tuple(
        Line(label, (_exact([(row["step"], row.get(name)) for row in validations]),), colour, smooth=False)
        for name, label, colour in named
    )
    return _over_steps("Weights and their average", "Loss on held-out clips by both.", marks, [Panel("loss", lines)])


def draw_levels(validations: Sequence[Row], marks: Marks) -> Picture | None:
    """The loss on held-out clips at each noise level over training."""
    from matplotlib import colormaps

    levels: list[float] = next(
        (row["levels"] for row in reversed(validations) if isinstance(row.get("levels"), list)), []
    )
    shades = colormaps["viridis"](np.linspace(0.05, 0.9, len(levels)))
    lines = []
    for place, level in enumerate(levels):
        pairs = [
            (row["step"], row["by_level"][place])
            for row in validations
            if row.get("levels") == levels and len(row.get("by_level") or ()) == len(levels)
        ]
        lines.append(Line(f"{level:.2f}", (_exact(pairs),), shades[place], smooth=False))
    about = "Loss on held-out clips by noise level: 0 is clean, 1 is noise."
    return _over_steps("Loss by noise level", about, marks, [Panel("loss", tuple(lines))])


def draw_saves(series: Series, marks: Marks) -> Picture | None:
    """How long each save of a checkpoint held training up."""
    blocked = series.column("saved_blocked_seconds")
    places = np.flatnonzero(np.isfinite(blocked))
    if not len(places):
        return None
    figure, (axes,) = _figure(1, _HALF, 2.7)
    _dress(axes, marks, named=False)
    axes.vlines(series.steps[places], 0, blocked[places], color=_LINE, linewidth=1.6)
    axes.plot(series.steps[places], blocked[places], "o", markersize=4, color=_LINE)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("s")
    axes.set_xlabel("step")
    return Picture("Saves", "Seconds that training waited where a checkpoint was begun.", _png(figure))


def _over_steps(title: str, about: str, marks: Marks, panels: Sequence[Panel]) -> Picture | None:
    """Panels under each other on one axis of steps; None where none has a curve."""
    panels = [panel for panel in panels if any(_has_points(line) for line in panel.lines)]
    if not panels:
        return None
    figure, all_axes = _figure(len(panels), _HALF, 1.3 + 1.4 * len(panels))
    for axes, panel in zip(all_axes, panels, strict=True):
        _dress(axes, marks, named=False)
        shown = [line for line in panel.lines if _has_points(line)]
        for line in shown:
            _draw(axes, line, (None, line.label or None))
        _limit(axes, np.concatenate([_range(line) for line in shown]), panel.from_zero, panel.logarithmic)
        axes.set_ylabel(panel.axis)
        if len(shown) > 1:
            axes.legend(frameon=False, fontsize=8, ncols=-(-len(shown) // 4))
    all_axes[-1].set_xlabel("step")
    return Picture(title, about, _png(figure))


def _draw(axes: Any, line: Line, labels: tuple[str | None, str | None]) -> None:
    """The raw values of a line, or the range of the steps that a point stands for, under the smoothed ones."""
    raw, strong = labels
    for points in line.parts:
        if line.smooth and np.array_equal(points.low, points.high):
            axes.plot(points.steps, points.mean, color=_RAW, linewidth=0.8, label=raw)
        elif line.smooth:
            axes.fill_between(points.steps, points.low, points.high, color=_RAW, linewidth=0, alpha=0.7, label=raw)
        values = smoothed(points) if line.smooth else points.mean
        axes.plot(points.steps, values, color=line.colour, linewidth=1.8, label=strong)
        raw = strong = None


def _exact(pairs: Sequence[tuple[int, Any]]) -> Curve:
    """The curve of (step, value) pairs; those without a value are left out."""
    known = [(step, float(value)) for step, value in pairs if isinstance(value, int | float)]
    table = np.array(known, float).reshape(-1, 2)
    return curve(table[:, 0], table[:, 1])


def _has_points(line: Line) -> bool:
    return any(len(points.mean) for points in line.parts)


def _figure(rows: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure of so many inches and its axes. The object API is used: pyplot would hold every figure in a global."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    left, right, bottom, top = _MARGINS  # a layout engine would draw everything twice
    figure.subplots_adjust(
        left=left / width, right=1 - right / width, bottom=bottom / height, top=1 - top / height, hspace=0.12
    )
    return figure, list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])


def _dress(axes: Any, marks: Marks, *, named: bool) -> None:
    """Grid, stages in turn shaded, and lines where the run was restarted or went back."""
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_TEXT, labelsize=8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if marks.stages:
        first, last = marks.stages[0][1], marks.stages[-1][2]
        edge = 0.02 * (last - first) + 0.5
        axes.set_xlim(first - edge, last + edge)
    for place, (name, first, last) in enumerate(marks.stages):
        if place % 2:
            axes.axvspan(first - 0.5, last + 0.5, color=_SHADE, zorder=0)
        if named and name:
            axes.annotate(name, ((first + last) / 2, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom",
                          fontsize=8.5, color=_SOFT, xytext=(0, 3), textcoords="offset points")  # fmt: skip
    for steps, style, label in ((marks.restarts, "--", "restart"), (marks.rollbacks, ":", "rollback")):
        for place, step in enumerate(steps):
            axes.axvline(step, color=_BAD, linewidth=1.1, linestyle=style, label=label if named and not place else None)
    if named and marks.skipped:
        axes.plot(marks.skipped, np.zeros(len(marks.skipped)), "|", color=_BAD, markersize=10, clip_on=False,
                  transform=axes.get_xaxis_transform(), label="skipped step")  # fmt: skip


def _range(line: Line) -> np.ndarray:
    """Values that the axis shall hold: all of a smoothed curve, and the raw ones but for their rarest spikes."""
    parts = [points for points in line.parts if len(points.mean)]
    if not line.smooth:
        return np.concatenate([points.mean for points in parts])
    low = np.concatenate([points.low for points in parts])
    high = np.concatenate([points.high for points in parts])
    spread = [np.quantile(low, 0.004), np.quantile(high, 0.99)]
    return np.concatenate([spread, *(smoothed(points) for points in parts)])


def _limit(axes: Any, values: np.ndarray, from_zero: bool = False, logarithmic: bool = False) -> None:
    low, high = float(values.min()), float(values.max())
    if logarithmic and low > 0:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.2, high * 1.2)
        for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            ticks(lambda value, _: f"{value:.3g}")
        axes.tick_params(which="minor", labelsize=7, colors=_SOFT)
        return
    if high >= 10_000:
        axes.yaxis.set_major_formatter(lambda value, _: format_count(value))
    elif high < 0.01:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    pad = 0.07 * (high - low) or max(abs(high), 1e-12) * 0.1
    axes.set_ylim(0.0 if from_zero and low >= 0 else low - pad, high + pad)


def _png(figure: Any) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI)
    return data.getvalue()
