"""Writes the demo's result: `score.json` for programs and `report.html`, one self-contained page, for people."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from megavideo.errors import DataError
from megavideo.evaluation.shapes.page import Mark, facts_table, page, sample_card, score_panel
from megavideo.evaluation.shapes.score import Score, Verdict
from megavideo.evaluation.shapes.spec import CHANCE_COLOUR, CHANCE_MOTION, CHANCE_SHAPE
from megavideo.observe.pictures import frame_strip

_STRIP_FRAMES = 6
_LAST_FRAME_SECONDS = 0.6  # a rest before the loop starts again, so that left and right are told apart
_TITLE = "megavideo demo: moving shapes"
_LEAD = (
    "A video diffusion transformer trained from nothing on clips of coloured shapes that move. Each prompt below asks "
    "for a combination of colour, shape and motion that was never in the training clips."
)
_NOTE = (
    "How it is measured: colour, shape and motion are read from the pixels of each sample alone, without the prompt. "
    "The colour is the hue of the coloured pixels, the motion is the path of their centre, and the shape is the best "
    "of ideal pictures at several sizes and blurs. What cannot be told counts as wrong."
)


@dataclass(frozen=True)
class ReportRow:
    """One sample of the report: its prompt, its frames uint8 [T, H, W, 3] and its rate."""

    prompt: str
    frames: np.ndarray
    fps: float


def write_report(
    folder: Path, score: Score, rows: Sequence[ReportRow], loss_png: Path, extra: Mapping[str, str]
) -> Path:
    """Write `report.html` and `score.json` into `folder` and return the page's path.

    `rows` are the samples in the order of `score.verdicts`; `extra` is a table of facts about the run. Raises DataError
    where the loss picture is missing, ValueError where rows and verdicts differ in number.
    """
    if not loss_png.is_file():
        raise DataError(f"{loss_png}: the picture of the loss is missing. Remedy: plot it from metrics.jsonl first")
    folder.mkdir(parents=True, exist_ok=True)
    pairs = list(zip(rows, score.verdicts, strict=True))
    _write_text(folder / "score.json", json.dumps(score_record(score, [row.prompt for row in rows]), indent=2) + "\n")
    loss = f'<div class="panel"><img src="{_data_uri(loss_png.read_bytes(), "image/png")}" alt="loss curve"></div>'
    facts = f'<div class="panel">{facts_table(extra)}</div>' if extra else ""
    parts = [
        '<div class="scores">',
        score_panel("colour", score.colour, score.prompts, CHANCE_COLOUR),
        score_panel("motion", score.motion, score.prompts, CHANCE_MOTION),
        score_panel("shape", score.shape, score.prompts, CHANCE_SHAPE),
        "</div>",
        f'<h2>Training</h2><div class="wide{"" if facts else " single"}">{loss}{facts}</div>',
        "<h2>Samples</h2>",
        '<div class="samples">',
        *(_card(row, verdict) for row, verdict in pairs),
        "</div>",
    ]
    path = folder / "report.html"
    _write_text(path, page(_TITLE, _LEAD, parts, _NOTE))
    return path


def score_record(score: Score, prompts: Sequence[str]) -> dict[str, object]:
    """Return the content of `score.json`: the shares, and under `samples` what was asked and shown for each prompt."""
    samples = [
        {
            "prompt": prompt,
            "asked": asdict(verdict.asked),
            "shown": asdict(verdict.shown),
            "right": {"colour": verdict.colour, "shape": verdict.shape, "motion": verdict.motion},
        }
        for prompt, verdict in zip(prompts, score.verdicts, strict=True)
    ]
    return {
        "prompts": score.prompts,
        "colour": score.colour,
        "shape": score.shape,
        "motion": score.motion,
        "samples": samples,
    }


def animated_gif(frames: np.ndarray, fps: float) -> bytes:
    """Return `frames` uint8 [T, H, W, 3] as an endless GIF that rests on its last frame."""
    pictures = [Image.fromarray(frame) for frame in frames]
    times = [round(1000 / fps)] * len(pictures)
    times[-1] = max(times[-1], round(1000 * _LAST_FRAME_SECONDS))
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0)
    return buffer.getvalue()


def _card(row: ReportRow, verdict: Verdict) -> str:
    """Return the card of one sample."""
    strip = io.BytesIO()
    frame_strip(row.frames, _STRIP_FRAMES, scale=1, gap=2).save(strip, "PNG")
    marks = [
        Mark(name, getattr(verdict.asked, name) or "still", getattr(verdict.shown, name) or "unclear")
        for name in ("colour", "shape", "motion")
    ]
    clip = _data_uri(animated_gif(row.frames, row.fps), "image/gif")
    return sample_card(row.prompt, clip, _data_uri(strip.getvalue(), "image/png"), marks)


def _data_uri(data: bytes, kind: str) -> str:
    """Return `data` as a URI that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _write_text(path: Path, text: str) -> None:
    """Write a file in one move."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
