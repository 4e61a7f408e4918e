"""Perceptual hashes of clips, for finding near-duplicates: equal for re-encoded and rescaled copies, or nearly so."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from megavideo.data.ingest.filters.score import luma

HASH_BITS = 256
_PLACES = (0.125, 0.375, 0.625, 0.875)  # of the clip's duration
_SIDE = 32
_KEPT = 8
COLOURS_BYTES = len(_PLACES) * _KEPT * _KEPT * 3


def fingerprint(frames: np.ndarray, seconds: Sequence[float]) -> tuple[str, str]:
    """Hash and colours, hexadecimal, of frames uint8 [T, h, w, 3] at the times `seconds` [T].

    The hash is the DCT one (pHash; Zauner 2010) of four frames at eighths of the clip, 64 bits each: a bit tells
    whether a low frequency of the 32 x 32 brightness is above the median. The colours are the four frames as 8 x 8
    pixels: two clips may share their brightness and differ in hue.
    """
    import cv2

    bits: list[np.ndarray] = []
    colours: list[np.ndarray] = []
    for place in _PLACES:
        wanted = seconds[0] + place * (seconds[-1] - seconds[0])
        frame = frames[int(np.abs(np.array(seconds) - wanted).argmin())]
        brightness = cv2.resize(luma(frame), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
        low = (_dct_rows() @ brightness @ _dct_rows().T).ravel()
        # The mean brightness, coefficient 0, says nothing about the picture's structure.
        bits.append(low > np.median(low[1:]))
        colours.append(cv2.resize(frame, (_KEPT, _KEPT), interpolation=cv2.INTER_AREA))
    return np.packbits(np.concatenate(bits)).tobytes().hex(), np.stack(colours).tobytes().hex()


def _dct_rows() -> np.ndarray:
    """The first eight rows of the orthonormal DCT-II of 32 points, [8, 32]."""
    frequency, point = np.mgrid[:_KEPT, :_SIDE]
    rows = np.cos(math.pi / _SIDE * (point + 0.5) * frequency) * math.sqrt(2.0 / _SIDE)
    rows[0] /= math.sqrt(2.0)
    return rows
