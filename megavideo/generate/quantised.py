"""A small video of a run and of its quantised export from the same noise, beside each other, and the page on both."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from megavideo.config.schema.export import ExportRun
from megavideo.config.schema.sample import SampleRun
from megavideo.encoders.pretrained import compute_device
from megavideo.errors import DataError, MegavideoError
from megavideo.generate.loaded_run import load_run
from megavideo.generate.run import sample_videos
from megavideo.interop.experts import check_whole
from megavideo.interop.export.quantised import VideoDifference
from megavideo.interop.export.quantised_page import page_text
from megavideo.interop.export.run import ExportReport
from megavideo.interop.names import Dialect
from megavideo.interop.quantised_files import WrittenWeights
from megavideo.observe.whole_file import write_file


def compared(report: ExportReport, cfg: ExportRun, checkpoint: Path) -> ExportReport:
    """The report of a quantised export with the video of both, which is the page's too; the page is written.

    Where no video can be sampled the report says why. Raises DataError where the page cannot be written.
    """
    found = report.quantization
    if found is None:
        return report
    videos = None
    if cfg.verify and cfg.compare.steps:
        try:
            videos = sample_both(cfg, checkpoint)
        except MegavideoError as error:
            found = replace(found, no_video=str(error))
    else:
        found = replace(found, no_video="compare.steps=0" if cfg.verify else "verify=false")
    if videos is not None:
        found = replace(found, video=_difference(cfg, *videos))
    try:
        write_file(Path(found.page), page_text(report, found, videos).encode())
    except OSError as error:
        raise DataError(
            f"{found.page}: cannot be written ({error.strerror}), and {report.out} is whole. Remedy: make room, and "
            "export to another place"
        ) from error
    return replace(report, quantization=found)


def sample_both(cfg: ExportRun, checkpoint: Path) -> tuple[np.ndarray, np.ndarray]:
    """Videos of the checkpoint and of its export in `cfg.out`, both uint8 [frames, height, width, 3], in fp32.

    Raises MegavideoErrors where the run has no encoders, or cannot be sampled alone.
    """
    run = load_run(checkpoint, weights=cfg.weights, dtype=torch.float32, device=compute_device())
    check_whole(run.config)
    size = cfg.compare
    settings = SampleRun(ckpt=cfg.ckpt, out=cfg.out, weights=cfg.weights, steps=size.steps, frames=size.frames,
                         height=size.height, width=size.width)  # fmt: skip
    plain = sample_videos(run, settings, [size.prompt], "", first=0)[0]
    dialect: Dialect = "wan" if cfg.format == "single" else "diffusers"
    written = WrittenWeights(_files(cfg), run.config.model, dialect)
    with torch.no_grad():
        for name, parameter in run.model.named_parameters():
            parameter.copy_(written.value(name))
    return plain, sample_videos(run, settings, [size.prompt], "", first=0)[0]


def psnr_db(one: np.ndarray, two: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two videos of uint8, in dB; infinite where they are the same."""
    error = float(np.mean((one.astype(np.float64) - two.astype(np.float64)) ** 2))
    return 10.0 * math.log10(255.0**2 / error) if error else math.inf


def _difference(cfg: ExportRun, plain: np.ndarray, quantised: np.ndarray) -> VideoDifference:
    size = cfg.compare
    return VideoDifference(size.prompt, size.steps, size.frames, size.height, size.width, psnr_db(plain, quantised))


def _files(cfg: ExportRun) -> list[Path]:
    out = Path(cfg.out)
    if out.is_file():
        return [out]
    home = out / "transformer" if cfg.format == "pipeline" else out
    return sorted(home.glob("*.safetensors"))
