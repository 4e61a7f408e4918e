"""Samples that a run drew while it trained, as small pictures and clips for its page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from megavideo.border.json_text import read_json
from megavideo.border.media import opened_video
from megavideo.border.refused import Refused
from megavideo.observe.page import data_uri
from megavideo.observe.pictures import evenly_spaced, frame_strip

_MP4 = {"format_whitelist": "mov", "protocol_whitelist": "file"}
_STILL_WIDTH = 224
_STRIP_WIDTH = 1100
_STRIP_FRAMES = 8
_MOST_FRAMES = 1000
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class Still:
    """The middle frame of a sample as a data address; empty where the file is missing or cannot be read."""

    step: int
    uri: str


@dataclass(frozen=True)
class PromptRow:
    """A prompt, its sample of each shown step, and of the last the frames in a strip and the clip (empty if large)."""

    prompt: str
    stills: tuple[Still, ...]
    strip: str
    clip: str


def sample_steps(folder: Path) -> list[int]:
    """Steps of which there are samples, in order."""
    names = [place.name.removeprefix("step_") for place in folder.glob("step_*") if place.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal())


def prompt_rows(folder: Path, most_steps: int, most_prompts: int, clip_bytes: float) -> tuple[PromptRow, ...]:
    """Rows of the page's table of samples: at most `most_prompts`, each at most `most_steps` steps, always the last."""
    found = sample_steps(folder)
    steps = [found[place] for place in evenly_spaced(len(found), most_steps)] if found else []
    if len(found) > most_steps > 0:
        steps[-1] = found[-1]
    if not steps:
        return ()
    prompts = read_prompts(_place(folder, steps[-1]))[:most_prompts]
    return tuple(_row(folder, steps, number, prompt, clip_bytes) for number, prompt in enumerate(prompts))


def read_prompts(place: Path) -> list[str]:
    """The prompts of a folder of samples, by prompts.json; where that is damaged the names of the clips."""
    try:
        content: Any = read_json(place / "prompts.json")
    except (OSError, ValueError):
        content = None
    if isinstance(content, dict):
        content = content.get("prompts", list(content.values()))
    if not isinstance(content, list):
        return [path.stem for path in sorted(place.glob("*.mp4"))]
    return [str(item.get("prompt", "") if isinstance(item, dict) else item) for item in content]


def read_frames(path: Path) -> np.ndarray | None:
    """Frames of an mp4 file, uint8 [T, H, W, 3], at most the first thousand; None where it cannot be read.

    They are made no wider than the page shows them, because a minute in full size is gigabytes.
    """
    try:
        with opened_video(path, _MP4) as container:
            frames = []
            for frame in container.decode(video=0):
                width = min(frame.width, _STILL_WIDTH)
                height = max(1, round(frame.height * width / frame.width))
                frames.append(frame.to_ndarray(format="rgb24", width=width, height=height))
                if len(frames) == _MOST_FRAMES:
                    break
    except (Refused, OSError, IndexError):  # an IndexError tells of a file without video
        return None
    return np.stack(frames) if frames else None


def _row(folder: Path, steps: Sequence[int], number: int, prompt: str, clip_bytes: float) -> PromptRow:
    stills, strip = [], ""
    for step in steps:
        frames = read_frames(_clip(folder, step, number))
        stills.append(Still(step, "" if frames is None else _picture(frames[len(frames) // 2])))
        if step == steps[-1] and frames is not None:
            shown = frame_strip(frames, _STRIP_FRAMES)
            strip = _jpeg(shown, _STRIP_WIDTH)
    path = _clip(folder, steps[-1], number)
    small = bool(strip) and path.stat().st_size <= clip_bytes
    return PromptRow(prompt, tuple(stills), strip, data_uri("video/mp4", path.read_bytes()) if small else "")


def _place(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def _clip(folder: Path, step: int, number: int) -> Path:
    return _place(folder, step) / f"{number:02d}.mp4"


def _picture(frame: np.ndarray) -> str:
    return _jpeg(Image.fromarray(frame), _STILL_WIDTH)


def _jpeg(image: Image.Image, width: int) -> str:
    """A data address of the picture, made no wider than `width`."""
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=_JPEG_QUALITY)
    return data_uri("image/jpeg", data.getvalue())
