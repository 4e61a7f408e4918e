"""Decoded videos as pixels, and on a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from megavideo.data.storage.files import writing
from megavideo.errors import NumericsError
from megavideo.observe.pictures import contact_sheet, evenly_spaced
from megavideo.observe.whole_file import replacing

SHEET_ROWS = 64
_SHEET_FRAMES = 8
_VISIBLE_SIDE = 160  # pixels to which small videos are enlarged on a sheet


def to_pixels(video: torch.Tensor, size: tuple[int, int, int]) -> np.ndarray:
    """[3, T, H, W] in -1..1 to uint8 [frames, height, width, 3] of `size`, cut from the middle of what was sampled.

    Raises NumericsError where a value is not finite, which would be shown as black.
    """
    frames, height, width = size
    top, left = (video.shape[2] - height) // 2, (video.shape[3] - width) // 2
    cut = video[:, :frames, top : top + height, left : left + width].float()
    if not bool(torch.isfinite(cut).all()):
        raise NumericsError(
            "a decoded video holds values that are not finite. Remedy: check the weights of the autoencoder in the "
            "run's folder encoders/, and the run with `megavideo checkpoint verify RUN`"
        )
    pixels = ((cut.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    result: np.ndarray = pixels.permute(1, 2, 3, 0).contiguous().numpy()
    return result


def sheet_frames(video: np.ndarray) -> np.ndarray:
    """The few frames of a video [T, H, W, 3] that a sheet shows, without the memory of the others."""
    return video[evenly_spaced(len(video), _SHEET_FRAMES)]


def sheet_of(rows: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """A contact sheet of the first 64 (caption, video uint8 [T, H, W, 3]).

    Of the videos no more than `sheet_frames` are needed. Raises ValueError where there is no row.
    """
    rows = rows[:SHEET_ROWS]
    scale = max(1, _VISIBLE_SIDE // max(max(video.shape[1:3]) for _, video in rows))
    frames = min(_SHEET_FRAMES, max(len(video) for _, video in rows))
    return contact_sheet(rows, frames_per_row=frames, scale=scale)


def write_sheet(path: Path, rows: Sequence[tuple[str, np.ndarray]]) -> None:
    """Write `sheet_of(rows)` as PNG; DataError where the disk refuses."""
    sheet = sheet_of(rows)
    with writing(path), replacing(path) as temporary:
        sheet.save(temporary, "PNG")
