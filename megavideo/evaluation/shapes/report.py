"""Writes the demo's result: `score.json` for programs and `report.html`, one self-contained page, for people."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from megavideo.errors import DataError
from megavideo.evaluation.shapes.score import Score, Verdict
from megavideo.evaluation.shapes.spec import CHANCE_COLOUR, CHANCE_MOTION, CHANCE_SHAPE
from megavideo.observe.page import data_uri, render
from megavideo.observe.pictures import frame_strip
from megavideo.observe.whole_file import write_file

_STRIP_FRAMES = 6
_LAST_FRAME_SECONDS = 0.6  # a rest before the loop starts again, so that left and right are told apart


@dataclass(frozen=True)
class ReportRow:
    """One sample of the report: its prompt, its frames uint8 [T, H, W, 3] and its rate."""

    prompt: str
    frames: np.ndarray
    fps: float


@dataclass(frozen=True)
class _Score:
    """The share (0..1) of prompts of which one attribute is right, and that of guessing."""

    name: str
    share: float
    right: int
    chance: float


@dataclass(frozen=True)
class _Mark:
    """Whether one attribute is right: its name, what was asked for and what is shown ('unclear' where it is)."""

    name: str
    asked: str
    shown: str

    @property
    def right(self) -> bool:
        """Whether what is shown was asked for."""
        return self.asked == self.shown


@dataclass(frozen=True)
class _Sample:
    """A sample on the page: its prompt, the moving clip and a strip of frames as data addresses, and its marks."""

    prompt: str
    clip: str
    strip: str
    marks: tuple[_Mark, ...]


def write_report(
    folder: Path, score: Score, rows: Sequence[ReportRow], loss_png: Path, extra: Mapping[str, str]
) -> Path:
    """Write `report.html` and `score.json` into `folder` and return the page's path.

    `rows` are the samples in the order of `score.verdicts`; `extra` is a table of facts about the run. Raises DataError
    where the loss picture is missing, ValueError where rows and verdicts differ in number.
    """
    if not loss_png.is_file():
        raise DataError(f"{loss_png}: the picture of the loss is missing. Remedy: plot it from metrics.jsonl first")
    pairs = list(zip(rows, score.verdicts, strict=True))
    record = score_record(score, [row.prompt for row in rows])
    write_file(folder / "score.json", (json.dumps(record, indent=2) + "\n").encode())
    named = (
        ("colour", score.colour, CHANCE_COLOUR), ("motion", score.motion, CHANCE_MOTION),
        ("shape", score.shape, CHANCE_SHAPE),
    )  # fmt: skip
    values = {
        "scores": [_Score(name, share, round(share * score.prompts), chance) for name, share, chance in named],
        "num_prompts": score.prompts,
        "loss": data_uri("image/png", loss_png.read_bytes()),
        "about": list(extra.items()),
        "samples": [_sample(row, verdict) for row, verdict in pairs],
    }
    path = folder / "report.html"
    write_file(path, render("demo.html.j2", values, __package__).encode())
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


def _sample(row: ReportRow, verdict: Verdict) -> _Sample:
    strip = io.BytesIO()
    frame_strip(row.frames, _STRIP_FRAMES, scale=1, gap=2).save(strip, "PNG")
    marks = tuple(
        _Mark(name, getattr(verdict.asked, name) or "still", getattr(verdict.shown, name) or "unclear")
        for name in ("colour", "shape", "motion")
    )
    clip = data_uri("image/gif", animated_gif(row.frames, row.fps))
    return _Sample(row.prompt, clip, data_uri("image/png", strip.getvalue()), marks)
