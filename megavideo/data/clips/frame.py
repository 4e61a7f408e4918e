"""A decoded frame of a video: its time, and pixels that are converted only when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import xxhash
from av.video.frame import PictureType
from av.video.reformatter import Colorspace, ColorTrc, Interpolation

from megavideo.data.clips.tone_map import Transfer, to_sdr

# Exact conversion, the same on every machine.
_CONVERSION = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT
# Fast, and averaging: what is scored must not alias.
_REDUCTION = Interpolation.AREA
# A picture decoded from wrong references differs in whole blocks of 8 or 16 lines: not all lines need be hashed.
_HASHED_LINES = 4
_TRANSFERS: dict[int, Transfer] = {ColorTrc.SMPTE2084.value: "pq", ColorTrc.ARIB_STD_B67.value: "hlg"}
_UNTOLD = 2  # ITU-T H.273: a matrix that is not told
_FULL_RANGE = 2  # FFmpeg's code
# Players take BT.709 for larger pictures that do not tell their matrix, and BT.601 for others.
_HD_WIDTH, _SD_HEIGHT = 1280, 576


@dataclass(frozen=True)
class Upright:
    """How stored pixels become upright ones: first transpose, then mirror."""

    transpose: bool
    mirror_x: bool
    mirror_y: bool

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """The upright picture of stored pixels [H, W, C]."""
        if self.transpose:
            pixels = pixels.transpose(1, 0, 2)
        if self.mirror_x:
            pixels = pixels[:, ::-1]
        if self.mirror_y:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)


@dataclass(frozen=True)
class StreamTold:
    """What the header of a file tells of its video stream.

    `rate` is its frames a second, 0 where it tells none. `pixel_aspect` is the width of a stored pixel over its height.
    """

    rate: float
    pixel_aspect: float


@dataclass(frozen=True)
class Traits:
    """What is known of a frame beside its pixels and its time: its size in upright pixels, their shape, and the rate.

    `pixel_aspect` is the width of a pixel over its height; `rate_told` is `StreamTold.rate`. The others tell what its
    pixels are made from: the transfer function, whether it was interlaced or has alpha, and whether it is of an
    animated image.
    """

    width: int
    height: int
    pixel_aspect: float
    rate_told: float
    transfer: Transfer = "sdr"
    is_interlaced: bool = False
    has_alpha: bool = False
    is_animation: bool = False


@dataclass(frozen=True)
class Frame:
    """A decoded frame and its time. Sizes are upright pixels.

    `is_timed` is False where the file gives the frame no time of its own, and the one before it decides.
    `was_interlaced` tells that `raw` was made of an interlaced frame, `is_animation` that an animated image holds it.
    """

    raw: av.VideoFrame
    seconds: float
    is_timed: bool
    upright: Upright
    told: StreamTold
    was_interlaced: bool = False
    is_animation: bool = False

    @property
    def width(self) -> int:
        """Pixels of a row."""
        return int(self.raw.height if self.upright.transpose else self.raw.width)

    @property
    def height(self) -> int:
        """Pixels of a column."""
        return int(self.raw.width if self.upright.transpose else self.raw.height)

    @property
    def pixel_aspect(self) -> float:
        """The width of an upright pixel over its height."""
        return 1.0 / self.told.pixel_aspect if self.upright.transpose else self.told.pixel_aspect

    @property
    def traits(self) -> Traits:
        """What is known of it beside its pixels."""
        return Traits(
            width=self.width,
            height=self.height,
            pixel_aspect=self.pixel_aspect,
            rate_told=self.told.rate,
            transfer=self.transfer,
            is_interlaced=self.was_interlaced,
            has_alpha=self.has_alpha,
            is_animation=self.is_animation,
        )

    @property
    def transfer(self) -> Transfer:
        """How its code values stand for light."""
        return _TRANSFERS.get(self.raw.color_trc, "sdr")

    @property
    def has_alpha(self) -> bool:
        """True where its pixels may be transparent."""
        return any(part.is_alpha for part in self.raw.format.components)

    @property
    def is_key(self) -> bool:
        """True where the decoder, not the index of the file, says that the frame leans on no other."""
        return bool(self.raw.key_frame) and self.raw.pict_type == PictureType.I

    def rgb(self) -> np.ndarray:
        """The whole picture, uint8 [H, W, 3]."""
        return self._pixels(self.raw.width, self.raw.height, _CONVERSION)

    def small(self, longest: int) -> np.ndarray:
        """The picture with its longer side scaled down to `longest` pixels, never up, uint8 [h, w, 3]."""
        scale = min(1.0, longest / max(self.raw.width, self.raw.height))
        width, height = (max(1, round(side * scale)) for side in (self.raw.width, self.raw.height))
        return self._pixels(width, height, _REDUCTION)

    def _pixels(self, width: int, height: int, interpolation: Interpolation) -> np.ndarray:
        """The picture at a size, uint8 [h, w, 3]: HDR as SDR, and what is transparent over white."""
        transfer, has_alpha = self.transfer, self.has_alpha
        pixels: Any = self.raw.to_ndarray(
            format="rgb48le" if transfer != "sdr" else "rgba" if has_alpha else "rgb24",
            width=width,
            height=height,
            src_colorspace=_matrix(self.raw, transfer),
            interpolation=interpolation,
            threads=1,
        )
        if transfer != "sdr":
            pixels = to_sdr(pixels, transfer)
        elif has_alpha:
            pixels = _over_white(pixels)
        return self.upright.apply(pixels)

    def digest(self) -> str:
        """XXH3 of every fourth line as decoded, 16 hexadecimal digits: equal for equal pictures on one kind of machine.

        Decoders of old codecs may round otherwise on another kind, so that unequal digests alone are no fault. Empty
        where the picture lies in memory otherwise than line after line.
        """
        digest = xxhash.xxh3_64()
        for number, plane in enumerate(self.raw.planes):
            if plane.line_size <= 0:
                return ""
            lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            used = min(plane.line_size, _line_bytes(self.raw.format, number, plane.width))
            digest.update(lines[: plane.height : _HASHED_LINES, :used].tobytes())
        return digest.hexdigest()


def upright(frame: av.VideoFrame) -> Upright:
    """Read the display matrix: x' = a x + c y, y' = b x + d y, in 16.16 fixed point, row by row of three."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return Upright(False, False, False)
    a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Upright(True, c < 0, b < 0)
    return Upright(False, a < 0, d < 0)


def _matrix(raw: av.VideoFrame, transfer: Transfer) -> Colorspace | None:
    """The matrix of a frame that does not tell its own; None where it does, or where FFmpeg's BT.601 is right."""
    if raw.colorspace != _UNTOLD or raw.format.is_rgb:
        return None
    if transfer != "sdr":
        return Colorspace.BT2020
    is_hd = raw.width >= _HD_WIDTH or raw.height > _SD_HEIGHT
    # Full range is JPEG's, which is BT.601 at every size.
    return Colorspace.ITU709 if is_hd and raw.color_range != _FULL_RANGE else None


def _over_white(pixels: np.ndarray) -> np.ndarray:
    """Pixels uint8 [h, w, 4] over white, uint8 [h, w, 3]."""
    colours, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _line_bytes(pixels: Any, plane: int, width: int) -> int:
    """Bytes of a line of a plane that hold pixels; what follows up to the line size is left as it was."""
    if not pixels.is_planar:
        return width * int(pixels.padded_bits_per_pixel) // 8
    return sum(width * -(-part.bits // 8) for part in pixels.components if part.plane == plane)
