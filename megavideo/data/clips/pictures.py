"""Still pictures and animated ones, as Pillow reads them from an image that is open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from PIL import Image, ImageOps, ImageSequence

from megavideo.data.clips.frame import Frame, StreamTold, Upright
from megavideo.data.clips.tone_map import Transfer

_DEFAULT_SECONDS = 0.1  # of a frame that tells no duration, as browsers have it
_MILLISECONDS = Fraction(1, 1000)


@dataclass(frozen=True)
class Still:
    """A still picture: `pixels` uint8 [H, W, 3], upright, SDR and over white; whether it has alpha, its file's pages.

    `transfer` is HDR's that it was mapped from.
    """

    pixels: np.ndarray
    has_alpha: bool
    pages: int
    transfer: Transfer = "sdr"


def read_still(opened: Image.Image) -> Still:
    """The first picture of an image file."""
    pages = int(getattr(opened, "n_frames", 1)) if opened.format == "TIFF" else 1
    image: Image.Image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        # Sixteen-bit grey; Pillow's own conversion would clip it.
        grey = np.asarray(image).astype(np.float64) / 257.0
        levels = np.clip(grey + 0.5, 0, 255).astype(np.uint8)
        return Still(np.repeat(levels[..., None], 3, axis=2), False, pages)
    has_alpha = bool(image.has_transparency_data)
    if has_alpha:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return Still(np.array(image.convert("RGB")), has_alpha, pages)


def animation_frames(opened: Image.Image) -> Iterator[Frame]:
    """The pictures of an animated image as frames, at the times at which they are shown."""
    told: StreamTold | None = None
    seconds = 0.0
    for image in ImageSequence.Iterator(opened):
        image.load()  # which tells the duration
        shown = float(image.info.get("duration", 0.0)) / 1000.0 or _DEFAULT_SECONDS
        told = told or StreamTold(1.0 / shown, 1.0)
        mode = "RGBA" if image.has_transparency_data else "RGB"
        raw = av.VideoFrame.from_ndarray(np.array(image.convert(mode)), format="rgba" if mode == "RGBA" else "rgb24")
        raw.pts, raw.time_base = round(1000.0 * seconds), _MILLISECONDS
        yield Frame(raw, seconds, True, Upright(False, False, False), told, is_animation=True)
        seconds += shown
