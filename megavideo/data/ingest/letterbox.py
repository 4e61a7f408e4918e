"""Black bars around a picture, found from how often each pixel is brighter than black."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megavideo.data.ingest.part import Box

_BLACK_LEVEL = 16  # of 255; a bar after lossy coding
_NOISE_SHARE = 0.01  # of a bar's pixels in a line may be brighter at some time
_SMALLEST_BAR = 0.02  # of the side
_EDGE_SHARE = 0.5  # of the picture's first lines is brighter, in the mean over time: bars end along their whole length
_EDGE_LINES = 3
_LEAST_KEPT = 0.25  # of the side
_UNEVEN = 0.25  # difference of two opposite bars over the larger
_MOST_FRAMES = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class BrightPixels:
    """Which pixels of a picture [H, W] are brighter than black, eight to a byte."""

    shape: tuple[int, int]
    packed: np.ndarray

    def unpacked(self) -> np.ndarray:
        """The same as bool [H, W]."""
        height, width = self.shape
        return np.unpackbits(self.packed, count=height * width).reshape(self.shape).astype(np.bool_)


def bright_pixels(picture: np.ndarray) -> BrightPixels:
    """Those of a picture uint8 [H, W, 3]."""
    bright = np.maximum(np.maximum(picture[..., 0], picture[..., 1]), picture[..., 2]) > _BLACK_LEVEL
    return BrightPixels(bright.shape, np.packbits(bright))


class Bars:
    """Collects frames of a shot; then tells the box of the picture within its bars."""

    def __init__(self) -> None:
        self._bright = np.zeros((0, 0), np.uint16)
        self._num_frames = 0

    def add(self, picture: np.ndarray) -> None:
        """Look at a frame uint8 [H, W, 3]."""
        self.add_bright(bright_pixels(picture))

    def add_bright(self, pixels: BrightPixels) -> None:
        """Look at a frame by its bright pixels."""
        bright = pixels.unpacked()
        if self._num_frames == 0:
            self._bright = bright.astype(np.uint16)
        elif self._num_frames < _MOST_FRAMES:
            self._bright += bright
        else:
            return
        self._num_frames += 1

    def box(self) -> Box | None:
        """Left, top, right and bottom of the picture where it has bars, else None.

        Bars are black over the whole shot, come in pairs of about the same width, and end in a straight line: a dark
        scene, or one thing before a black background, has none.
        """
        if self._num_frames == 0:
            return None
        share = self._bright / self._num_frames
        height, width = share.shape
        top, bottom = _pair(share)
        left, right = _pair(share[top : height - bottom].T)
        # Side bars hide part of the edges above and below.
        top, bottom = _pair(share[:, left : width - right])
        if not (top or left):
            return None
        return left, top, width - right, height - bottom

    def lines(self) -> tuple[np.ndarray, np.ndarray]:
        """The share of pixels that were ever brighter than a bar in each row [H] and in each column [W]."""
        bright = self._bright > 0
        return (bright.mean(axis=1), bright.mean(axis=0)) if bright.size else (np.zeros(0), np.zeros(0))


def is_black_outside(lines: tuple[np.ndarray, np.ndarray], box: Box) -> bool:
    """True where a shot with these `lines` is as dark as a bar everywhere outside `box`."""
    (rows, columns), (left, top, right, bottom) = lines, box
    outside = np.concatenate([rows[:top], rows[bottom:], columns[:left], columns[right:]])
    return bool((outside <= _NOISE_SHARE).all())


def _pair(share: np.ndarray) -> tuple[int, int]:
    """Lines to cut at the top and at the bottom, 0 and 0 where they are no bars.

    `share` [H, W] tells in how many of the frames each pixel is brighter than black, 0..1.
    """
    if share.size == 0:
        return 0, 0
    shown = np.flatnonzero((share > 0).mean(axis=1) > _NOISE_SHARE)
    if len(shown) == 0:
        return 0, 0
    first, last, height = int(shown[0]), int(shown[-1]), len(share)
    bars = first, height - 1 - last
    if min(bars) < max(2, _SMALLEST_BAR * height) or max(bars) - min(bars) > max(2, _UNEVEN * max(bars)):
        return 0, 0
    lines = share.mean(axis=1)
    edges = lines[first : first + _EDGE_LINES].max(), lines[last - _EDGE_LINES + 1 : last + 1].max()
    if min(edges) < _EDGE_SHARE or last + 1 - first < _LEAST_KEPT * height:
        return 0, 0
    # A line more: the edge of a bar is blurred by the codec.
    return bars[0] + 1, bars[1] + 1
