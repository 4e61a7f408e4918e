"""The page on a quantised export: what each matrix lost, and the videos of the run and of its export."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from megavideo.interop.export.quantised import QuantizationReport
from megavideo.interop.export.run import ExportReport
from megavideo.interop.quantization import MatrixLoss
from megavideo.observe.page import data_uri, render
from megavideo.observe.pictures import contact_sheet
from megavideo.observe.progress import format_bytes

_HEAD = ("matrix", "shape", "relative error", "largest error", "at the largest code", "became zero")
_FRAMES = 6
_STRIP_HEIGHT = 96
_ERROR_GAIN = 8


def page_text(report: ExportReport, found: QuantizationReport, videos: tuple[np.ndarray, np.ndarray] | None) -> str:
    """The page's HTML; `videos` are of the run and of its export, uint8 [frames, height, width, 3]."""
    values = {
        "scheme": found.scheme,
        "numbers": _numbers(found),
        "about": _about(report, found),
        "chart": data_uri("image/png", _chart(found.matrices)),
        "videos": "" if videos is None else data_uri("image/png", _strips(*videos)),
        "no_video": found.no_video,
        "error_gain": _ERROR_GAIN,
        "head": _HEAD,
        "rows": [_row(loss) for loss in found.matrices],
    }
    return render("quantization.html.j2", values, __package__)


def _numbers(found: QuantizationReport) -> list[tuple[str, str]]:
    worst = found.matrices[0].relative_error if found.matrices else 0.0
    return [
        ("relative error of all matrices", f"{found.relative_error:.3%}"),
        ("of the worst", f"{worst:.3%}"),
        ("of one forward pass", "not run" if found.forward_error is None else f"{found.forward_error:.3%}"),
        ("PSNR of the videos", "none" if found.video is None else f"{found.video.psnr_db:.2f} dB"),
        ("of the bytes without", f"{found.bytes_share:.1%}"),
    ]


def _about(report: ExportReport, found: QuantizationReport) -> list[tuple[str, str]]:
    rows = [
        ("export", f"{report.out}, format={report.format}, {format_bytes(report.size_bytes)}"),
        ("weights", f"{report.weights} of step {report.step}"),
        ("quantised", f"{found.num_matrices} matrices of the blocks' linear layers; the rest in {report.dtype}"),
    ]
    if found.video is not None:
        video = found.video
        size = f"{video.frames} frames of {video.width}x{video.height}"
        rows.append(("videos", f"{size}, {video.steps} steps, of {video.prompt!r}"))
    return rows


def _chart(matrices: tuple[MatrixLoss, ...]) -> bytes:
    """The relative error of each kind of matrix over the depth, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds: dict[str, dict[int, float]] = {}
    for loss in matrices:
        _, block, kind = loss.name.removesuffix(".weight").split(".", 2)
        kinds.setdefault(kind, {})[int(block)] = loss.relative_error
    figure = Figure(figsize=(9, 3.4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    for kind, errors in sorted(kinds.items()):
        depths = sorted(errors)
        axes.plot(
            depths, [100 * errors[depth] for depth in depths], marker="o", markersize=3, linewidth=1.2, label=kind
        )
    axes.set_xlabel("block", fontsize=9)
    axes.set_ylabel("relative error, %", fontsize=9)
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0.0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color="#e3e6ea", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _strips(plain: np.ndarray, quantised: np.ndarray) -> bytes:
    """Frames of both, and of their difference, as PNG."""
    error = np.abs(plain.astype(int) - quantised.astype(int)) * _ERROR_GAIN
    rows = [
        ("the run", plain),
        ("its quantised export", quantised),
        (f"their difference, {_ERROR_GAIN}-fold", error.clip(0, 255).astype(np.uint8)),
    ]
    picture = contact_sheet(rows, _FRAMES, max(1, _STRIP_HEIGHT // plain.shape[1]))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _row(loss: MatrixLoss) -> tuple[str, ...]:
    return (
        loss.name, "x".join(map(str, loss.shape)), f"{loss.relative_error:.4%}", f"{loss.max_abs_error:.3g}",
        f"{loss.saturated_share:.4%}", f"{loss.zeroed_share:.4%}",
    )  # fmt: skip
