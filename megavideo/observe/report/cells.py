"""The loss by noise level, resolution and duration, as one grid of small maps.

Shape legend: L noise levels, F durations.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megavideo.observe.report.charts import Picture
from megavideo.observe.rows import Row

_COLUMNS = 4
_WIDTH = 11.2  # inches
_TEXT, _SOFT = "#20242c", "#5d6675"


@dataclass(frozen=True)
class LossMap:
    """Losses [F, L] of clips of at most `area` pixels a frame; not a number where no clip was measured.

    `frames` are the most that the clips of a row have.
    """

    area: int
    frames: tuple[int, ...]
    levels: tuple[float, ...]
    losses: np.ndarray
    counts: np.ndarray


def loss_maps(cells: Sequence[Mapping[str, Any]], name: str = "loss") -> tuple[LossMap, ...]:
    """Maps of the `cells` of a row of validation.jsonl, by resolution; cells without a finite loss are left out."""
    known = [cell for cell in cells if isinstance(cell.get(name), int | float)]
    levels = tuple(sorted({float(cell["level"]) for cell in known}))
    maps = []
    for area in sorted({int(cell["area"]) for cell in known}):
        own = [cell for cell in known if int(cell["area"]) == area]
        frames = tuple(sorted({int(cell["frames"]) for cell in own}))
        losses = np.full((len(frames), len(levels)), np.nan)
        counts = np.zeros((len(frames), len(levels)), int)
        for cell in own:
            place = frames.index(int(cell["frames"])), levels.index(float(cell["level"]))
            losses[place], counts[place] = float(cell[name]), int(cell.get("count") or 0)
        maps.append(LossMap(area, frames, levels, losses, counts))
    return tuple(maps)


def draw_cells(validations: Sequence[Row]) -> Picture | None:
    """The maps of the newest validation that has any, on one scale of colours."""
    row = next((row for row in reversed(validations) if row.get("cells")), None)
    maps = loss_maps(row["cells"]) if row is not None else ()
    if row is None or not maps:
        return None
    about = f"On held-out clips at step {row['step']:,}: noise level, 0 clean and 1 noise, against frames of a clip."
    return Picture("Loss by level, resolution and duration", about, _draw(maps), wide=True)


def area_name(area: int) -> str:
    """The most pixels of a frame as people say them: the side of a square as large."""
    return f"up to {round(area**0.5)}² pixels"


def _draw(maps: Sequence[LossMap]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(maps))
    rows = -(-len(maps) // columns)
    tallest = max(len(part.frames) for part in maps)
    height = rows * (1.0 + 0.34 * tallest)
    figure = Figure(figsize=(_WIDTH, height), facecolor="white")
    FigureCanvasAgg(figure)
    # inches: room for the names of the axes, and for the scale of colours on the right
    figure.subplots_adjust(left=0.6 / _WIDTH, right=1 - 0.8 / _WIDTH, bottom=0.5 / height, top=1 - 0.3 / height,
                           wspace=0.22, hspace=0.9 / (0.34 * tallest))  # fmt: skip
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    low = min(float(np.nanmin(part.losses)) for part in maps)
    high = max(float(np.nanmax(part.losses)) for part in maps)
    image: Any = None
    for axes, part in zip(panels, maps, strict=False):
        image = axes.imshow(part.losses, cmap="YlOrRd", vmin=low, vmax=high, aspect="auto", origin="lower")
        axes.set_title(area_name(part.area), loc="left", fontsize=10)
        axes.set_xticks(range(len(part.levels)), [f"{level:.2f}" for level in part.levels], fontsize=8)
        axes.set_yticks(range(len(part.frames)), [str(frames) for frames in part.frames], fontsize=8)
        axes.set_xlabel("noise level", fontsize=9)
        axes.set_ylabel("frames, up to", fontsize=9)
        axes.tick_params(colors=_TEXT, length=0)
        axes.spines[:].set_visible(False)
        _write_values(axes, part, low + 0.6 * (high - low))
    for axes in panels[len(maps) :]:
        axes.set_axis_off()
    place = figure.add_axes((1 - 0.65 / _WIDTH, 0.5 / height, 0.14 / _WIDTH, 1 - 0.8 / height))
    bar = figure.colorbar(image, cax=place)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=_SOFT)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    return data.getvalue()


def _write_values(axes: Any, part: LossMap, dark: float) -> None:
    """Each loss in its cell, in white where the cell is darker than that of a loss of `dark`."""
    if len(part.levels) > 12:
        return  # figures would not fit into their cells
    for y, x in zip(*np.nonzero(np.isfinite(part.losses)), strict=True):
        loss = float(part.losses[y, x])
        colour = "white" if loss > dark else _TEXT
        axes.text(x, y, f"{loss:#.3g}", ha="center", va="center", fontsize=7.5, color=colour)
