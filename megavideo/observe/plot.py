"""The loss curve of a run as a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from megavideo.errors import DataError
from megavideo.observe.metrics import numeric_values, read_metrics
from megavideo.observe.whole_file import write_file

_RAW = "#9db7dd"
_SMOOTH = "#1f4e96"
_RATE = "#b0652a"
_GRID = "#e3e6ea"
_TEXT = "#20242c"


def plot_loss(metrics_path: Path, png: Path) -> None:
    """Draw `loss` of a metrics file over its steps, raw and smoothed, with `learning_rate` below where it is recorded.

    Steps without a finite loss are left out. Raises DataError where no step has one.
    """
    rows = read_metrics(metrics_path)
    steps, losses = _column(rows, "loss")
    if len(steps) == 0:
        raise DataError(f"{metrics_path}: no row has a finite loss. Remedy: train for at least one step first")
    rate_steps, rates = _column(rows, "learning_rate")
    data = io.BytesIO()
    _draw(steps, losses, rate_steps, rates).savefig(data, format="png", dpi=130)
    write_file(png, data.getvalue())


def smooth(values: np.ndarray, half_life: float) -> np.ndarray:
    """Return the mean of `values` [N] around each place, weighted by 0.5 ** (distance / half_life).

    It looks both ways, so that the curve does not lag behind a falling loss; its last value is a mean of the past.
    """
    decay = 0.5 ** (1.0 / max(half_life, 1e-6))
    ones = np.ones(len(values))
    total = _decayed_sum(values, decay) + _decayed_sum(values[::-1], decay)[::-1] - values
    weight = _decayed_sum(ones, decay) + _decayed_sum(ones, decay)[::-1] - ones
    return total / weight


def _decayed_sum(values: np.ndarray, decay: float) -> np.ndarray:
    """Return the running sum of `values` [N] in which each step back counts `decay` times less."""
    sums = np.empty(len(values))
    running = 0.0
    for place, value in enumerate(values):
        running = decay * running + float(value)
        sums[place] = running
    return sums


def _column(rows: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of the rows that hold a finite number under `name`."""
    pairs = [(row["step"], values[name]) for row in rows if name in (values := numeric_values(row))]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _draw(steps: np.ndarray, losses: np.ndarray, rate_steps: np.ndarray, rates: np.ndarray) -> Any:
    """Return the matplotlib figure. The object API is used: pyplot would hold every figure in a global."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    has_rate = len(rates) > 0
    figure = Figure(figsize=(8, 4.6 if has_rate else 3.8), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    ratios = [4, 1] if has_rate else [1]
    panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    top = panels[0]
    smoothed = smooth(losses, half_life=max(len(losses) / 60, 1.0))
    top.plot(steps, losses, color=_RAW, linewidth=0.8, label="each step")
    top.plot(steps, smoothed, color=_SMOOTH, linewidth=2.0, label="smoothed")
    low, high = _limits(losses, smoothed)
    top.set_ylim(low, high)
    top.set_ylabel("loss")
    top.set_title(f"Training loss: {smoothed[-1]:.4f} after {int(steps[-1])} steps", loc="left", fontsize=11)
    top.legend(frameon=False, loc="upper right")
    if has_rate:
        panels[1].plot(rate_steps, rates, color=_RATE, linewidth=1.5)
        panels[1].set_ylabel("learning rate")
        panels[1].set_ylim(0, float(rates.max()) * 1.1 or 1.0)
        panels[1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    panels[-1].set_xlabel("step")
    for panel in panels:
        panel.grid(color=_GRID, linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(colors=_TEXT, labelsize=9)
    return figure


def _limits(losses: np.ndarray, smoothed: np.ndarray) -> tuple[float, float]:
    """Return vertical limits that show the whole smoothed curve, and the raw one but for its rarest spikes."""
    low = min(float(np.quantile(losses, 0.002)), float(smoothed.min()))
    high = max(float(np.quantile(losses, 0.998)), float(smoothed.max()))
    pad = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    return (0.0 if 0 <= low < 0.3 * high else low - pad), high + pad
