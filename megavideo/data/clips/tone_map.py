"""From HDR (PQ and HLG of BT.2100) to SDR (BT.709): what a viewer without an HDR screen is to see.

1. PQ gives the light of a screen, HLG that of the scene, which the reference system of BT.2100 shows on a screen of
   1,000 cd/m2 with a gamma of 1.2.
2. BT.2020's primaries become BT.709's by a matrix (BT.2087); what lies outside is cut off.
3. The largest of red, green and blue is brought from 1,000 cd/m2 to the 203 that white has (BT.2408) by the curve of
   BT.2390, which leaves what is dark as it is; the others keep their ratio to it. Brighter light is white.
4. The inverse of BT.1886's gamma of 2.4 makes code values of it.

It is our own, as libavfilter's needs zscale, which PyAV's builds lack: tables and a product, the same everywhere.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

Transfer = Literal["sdr", "pq", "hlg"]

_PEAK = 1000.0  # cd/m2 of the source
_WHITE = 203.0  # cd/m2 that become SDR's white
_SCREEN_GAMMA = 2.4
_SYSTEM_GAMMA = 1.2
_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # BT.2020
_CODES = 1 << 16
_STEPS = 1 << 13  # of tables over the square root of light: less than a tenth of a level of 255
_ROWS_AT_ONCE = 128


def to_sdr(pixels: npt.NDArray[np.uint16], transfer: Transfer) -> npt.NDArray[np.uint8]:
    """SDR pixels [H, W, 3] of HDR ones, which are R'G'B' of BT.2020 in full range: 65,535 is 1."""
    mapped = np.empty(pixels.shape, np.uint8)
    for begin in range(0, len(pixels), _ROWS_AT_ONCE):
        rows = slice(begin, begin + _ROWS_AT_ONCE)
        light = _display_light(pixels[rows], transfer) @ _TO_BT709.T
        largest = np.clip(light.max(axis=-1, keepdims=True), 0.0, _PEAK)
        scaled = light * _ratios()[_places(largest / np.float32(_PEAK))]
        mapped[rows] = _levels()[_places(np.clip(scaled / np.float32(_WHITE), 0.0, 1.0))]
    return mapped


def pq_light(code: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Light in cd/m2 of PQ code values 0..1: the EOTF of SMPTE ST 2084."""
    root = np.power(np.asarray(code, np.float64), 32 / 2523)
    return 10000.0 * np.power(np.maximum(root - 107 / 128, 0.0) / (2413 / 128 - 2392 / 128 * root), 8192 / 1305)


def pq_code(light: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """PQ code values of light in cd/m2, the inverse of `pq_light`."""
    power = np.power(np.asarray(light, np.float64) / 10000.0, 1305 / 8192)
    return np.power((107 / 128 + 2413 / 128 * power) / (1.0 + 2392 / 128 * power), 2523 / 32)


def compressed(light: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Light of 0 to 1,000 cd/m2 brought below 203 by the curve of BT.2390-4, section 5.4.1, without its black lift."""
    peak, white = pq_code(_PEAK), pq_code(_WHITE) / pq_code(_PEAK)
    code = pq_code(light) / peak
    knee = 1.5 * white - 0.5
    above = np.clip((code - knee) / (1.0 - knee), 0.0, 1.0)
    square, cube = above**2, above**3
    spline = (2 * cube - 3 * square + 1) * knee
    spline += (cube - 2 * square + above) * (1.0 - knee) + (-2 * cube + 3 * square) * white
    return pq_light(np.where(code < knee, code, spline) * peak)


def hlg_scene(code: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Light of the scene, 0..1, of HLG code values 0..1: the inverse OETF of ARIB STD-B67."""
    values = np.asarray(code, np.float64)
    return np.where(values <= 0.5, values**2 / 3, (np.exp((values - 0.55991073) / 0.17883277) + 0.28466892) / 12)


def _display_light(pixels: npt.NDArray[np.uint16], transfer: Transfer) -> npt.NDArray[np.float32]:
    light = _light_of_codes(transfer)[pixels]
    if transfer == "hlg":
        luminance = np.maximum(light @ _LUMINANCE, np.float32(1e-6))
        light = light * (np.float32(_PEAK) * luminance ** np.float32(_SYSTEM_GAMMA - 1.0))[..., None]
    return light


@cache
def _light_of_codes(transfer: Transfer) -> npt.NDArray[np.float32]:
    codes = np.arange(_CODES) / (_CODES - 1)
    return (pq_light(codes) if transfer == "pq" else hlg_scene(codes)).astype(np.float32)


@cache
def _ratios() -> npt.NDArray[np.float32]:
    """How much darker light becomes, over the square root of it."""
    light = np.maximum((np.arange(_STEPS) / (_STEPS - 1)) ** 2 * _PEAK, 1e-3)
    return (compressed(light) / light).astype(np.float32)


@cache
def _levels() -> npt.NDArray[np.uint8]:
    """Levels of 255, over the square root of light."""
    roots = np.arange(_STEPS) / (_STEPS - 1)
    return np.round(255.0 * roots ** (2.0 / _SCREEN_GAMMA)).astype(np.uint8)


def _places(light: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Places in a table over the square root of light 0..1."""
    return np.rint(np.sqrt(light) * np.float32(_STEPS - 1)).astype(np.int32)
