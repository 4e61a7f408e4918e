"""`report.html` of an autoencoder: what is lost of held-out clips, in numbers, in pictures and over the steps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from megavideo.autoencoder.corpus import HeldOutClip
from megavideo.autoencoder.evaluate import ClipResult, mean_of
from megavideo.autoencoder.model import TrainedAutoencoder
from megavideo.observe.metrics import read_metrics
from megavideo.observe.page import data_uri, render
from megavideo.observe.pictures import frame_strip
from megavideo.observe.whole_file import write_file

_SHOWN_CLIPS = 6
_STRIP_FRAMES = 6
_STRIP_HEIGHT = 96
_ERROR_GAIN = 8
_CURVES = (
    ("psnr_db", "PSNR, dB (held out)"),
    ("ssim", "SSIM (held out)"),
    ("eval_perceptual", "perceptual distance (held out)"),
    ("flicker", "flicker, grey levels (held out)"),
    ("reconstruction", "reconstruction (training)"),
    ("kl", "KL a latent number (training)"),
    ("perceptual", "perceptual term (training)"),
    ("adversarial", "adversarial term (training)"),
)
_COLUMNS = ("clip", "frames", "pixels", "PSNR dB", "SSIM", "perceptual", "flicker")


def write_report(
    folder: Path,
    results: Sequence[ClipResult],
    clips: Sequence[HeldOutClip],
    model: TrainedAutoencoder,
    facts: Mapping[str, str],
) -> Path:
    """Write `report.html` and pictures into a run's folder, whose `metrics.jsonl` gives the curves; the page's path."""
    mean = mean_of(results)
    curve = folder / "pictures" / "curve.png"
    values = {
        "numbers": [
            ("PSNR", f"{mean.psnr_db:.2f} dB"), ("SSIM", f"{mean.ssim:.4f}"),
            ("perceptual", f"{mean.perceptual:.4f}"), ("flicker", f"{mean.flicker:.2f}"),
        ],
        "curves": data_uri("image/png", curve.read_bytes()) if draw_curves(folder / "metrics.jsonl", curve) else "",
        "about": list(facts.items()),
        "clips": _clips(folder / "pictures", results, clips, model),
        "head": _COLUMNS,
        "rows": [_row(result) for result in results],
        "error_gain": _ERROR_GAIN,
    }  # fmt: skip
    path = folder / "report.html"
    write_file(path, render("autoencoder.html.j2", values, __package__).encode())
    return path


def _clips(
    folder: Path, results: Sequence[ClipResult], clips: Sequence[HeldOutClip], model: TrainedAutoencoder
) -> list[tuple[str, str]]:
    """Words and picture, as a data address, of the first clips; the pictures are written into `folder` as well."""
    shown = []
    for number, (clip, result) in enumerate(list(zip(clips, results, strict=True))[:_SHOWN_CLIPS]):
        picture = _encoded(side_by_side(clip.video, model.reconstruct(clip.video)))
        write_file(folder / f"held_out_{number}.png", picture)
        quality = result.quality
        text = f"{clip.name}: {quality.psnr_db:.2f} dB, SSIM {quality.ssim:.4f}, flicker {quality.flicker:.2f}"
        shown.append((text, data_uri("image/png", picture)))
    return shown


def side_by_side(original: torch.Tensor, restored: torch.Tensor) -> Image.Image:
    """Three rows of evenly spaced frames: original, restored, and the error's magnitude; videos [3, T, H, W]."""
    error = (restored - original).abs() * _ERROR_GAIN - 1.0
    scale = max(1, _STRIP_HEIGHT // original.shape[2])
    strips = [frame_strip(_pixels(video), _STRIP_FRAMES, scale) for video in (original, restored, error)]
    gap = 4
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height + gap for strip in strips) - gap), (250, 250, 251))
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + gap
    return sheet


def draw_curves(metrics: Path, png: Path) -> bool:
    """Draw every known number of a metrics file over its steps; whether there was one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(metrics) if metrics.is_file() else []
    columns = [(title, points) for name, title in _CURVES if len(points := _points(rows, name)) > 1]
    if not columns:
        return False
    num_rows = -(-len(columns) // 2)
    figure = Figure(figsize=(9, 2.3 * num_rows), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(num_rows, 2, squeeze=False).flatten()
    for panel, (title, points) in zip(panels, columns, strict=False):
        panel.plot(points[:, 0], points[:, 1], color="#1f4e96", linewidth=1.4)
        panel.set_title(f"{title}: {points[-1, 1]:.4g}", loc="left", fontsize=9)
        panel.grid(color="#e3e6ea", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    for panel in panels[len(columns) :]:
        panel.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(png, buffer.getvalue())
    return True


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    pairs = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), (int, float))]
    return np.array(pairs, dtype=float).reshape(-1, 2)


def _pixels(video: torch.Tensor) -> np.ndarray:
    levels = ((video.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(1, 2, 3, 0).numpy())


def _encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _row(result: ClipResult) -> tuple[str, ...]:
    quality = result.quality
    return (
        result.name, str(result.frames), f"{result.pixels[1]}x{result.pixels[0]}", f"{quality.psnr_db:.2f}",
        f"{quality.ssim:.4f}", f"{quality.perceptual:.4f}", f"{quality.flicker:.2f}",
    )  # fmt: skip
