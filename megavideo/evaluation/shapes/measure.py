"""Decides colour, shape and motion of a clip from its pixels alone; None where nothing can be said.

The foreground is what is coloured (far from grey) against the clip's background. For a shape or a motion it must be
one compact piece of a believable size, and for a colour most of it must agree: noise, an empty picture or several
pieces give None, so that a poor sample cannot score by luck. Made for the sizes of `render`: shapes of 8 to 40 pixels.
Shape legend: T frames, H height, W width, K candidate templates, G side of the template grid.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from megavideo.evaluation.shapes.render import coverage
from megavideo.evaluation.shapes.spec import COLOURS, RGB, SHAPES, Colour, Motion, Shape

_MIN_CHROMA = 50.0  # levels of 255 between the strongest and weakest channel for a pixel to count as coloured
_AREA_SHARE = (0.01, 0.45)  # of the picture, for a believable shape
_MIN_PIECE_SHARE = 0.7  # of the foreground that its largest connected piece must hold
_MAX_SPREAD = 0.26  # (variance of x + variance of y) / area: disc 0.159, square 0.167, triangle 0.194, scatter above
_MIN_HUE_SHARE = 0.6  # of the foreground that must agree on one colour
_MIN_TRAVEL_PIXELS = 4.0  # over the whole clip
_MIN_AXIS_RATIO = 1.5  # travel along the main axis over travel across it
_MIN_FRAMES_SHARE = 0.5  # of the clip in which the shape must be seen for a motion
_MIN_MATCH = 0.85  # correlation with the best template
_GRID = 48  # G, pixels
_TEMPLATE_DIAMETERS = tuple(np.arange(8.0, 40.0, 1.0))
_TEMPLATE_BLURS = (0.0, 1.0, 2.0, 3.0)


@dataclass(frozen=True)
class Measured:
    """What a clip shows. None: it cannot be said."""

    colour: Colour | None
    shape: Shape | None
    motion: Motion | None


@dataclass(frozen=True)
class _Foreground:
    """The largest coloured piece of each frame.

    `mask` bool [T, H, W]; `sized` bool [T] where its size is believable; `seen` bool [T] where it is compact as well.
    """

    mask: np.ndarray
    sized: np.ndarray
    seen: np.ndarray


def measure(frames: np.ndarray) -> Measured:
    """Return colour, shape and motion shown by `frames` uint8 [T, H, W, 3]; a single frame has no motion."""
    pixels = frames.astype(np.float32)
    foreground = _find_foreground(pixels)
    if foreground is None:
        return Measured(None, None, None)
    colour = _colour(pixels, foreground)
    if not foreground.seen.any():
        return Measured(colour, None, None)
    cover = _soft_coverage(pixels, foreground)
    centres = _centres(cover)
    return Measured(colour, _shape(cover, centres, foreground.seen), _motion(centres, foreground.seen))


def _find_foreground(pixels: np.ndarray) -> _Foreground | None:
    """Find the coloured piece in `pixels` float32 [T, H, W, 3], or None where none has a believable size."""
    smooth = _box3(pixels)
    background = np.median(smooth.reshape(-1, 3), axis=0)
    away = smooth - background
    chroma = away.max(axis=-1) - away.min(axis=-1)
    peak = float(np.quantile(chroma, 1 - _AREA_SHARE[0] / 2))
    if peak < _MIN_CHROMA:
        return None
    # Half of the strongest colour is the edge of a shape however blurred it is.
    coloured = chroma > max(peak / 2, _MIN_CHROMA / 2)
    piece = _largest_piece(coloured)
    area = piece.sum(axis=(1, 2))
    share = area / piece[0].size
    whole = area >= _MIN_PIECE_SHARE * np.maximum(coloured.sum(axis=(1, 2)), 1)
    compact = _spread(piece) <= _MAX_SPREAD
    sized = (share >= _AREA_SHARE[0]) & (share <= _AREA_SHARE[1])
    return _Foreground(piece, sized, sized & whole & compact) if sized.any() else None


def _box3(pixels: np.ndarray) -> np.ndarray:
    """Average each pixel of [T, H, W, 3] with its eight neighbours, edges repeated."""
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    """Keep the largest 4-connected piece of each frame of `mask` bool [T, H, W]."""
    num_frames = mask.shape[0]
    numbers = np.arange(1, mask[0].size + 1, dtype=np.int32).reshape(mask[0].shape)
    labels = np.where(mask, numbers, 0)
    while True:  # each pixel takes the highest number of its neighbourhood until nothing changes
        grown = labels.copy()
        np.maximum(grown[:, 1:], labels[:, :-1], out=grown[:, 1:])
        np.maximum(grown[:, :-1], labels[:, 1:], out=grown[:, :-1])
        np.maximum(grown[:, :, 1:], labels[:, :, :-1], out=grown[:, :, 1:])
        np.maximum(grown[:, :, :-1], labels[:, :, 1:], out=grown[:, :, :-1])
        grown[~mask] = 0
        if np.array_equal(grown, labels):
            break
        labels = grown
    kept = np.zeros_like(mask)
    for t in range(num_frames):
        counts = np.bincount(labels[t].ravel(), minlength=2)
        counts[0] = 0
        if counts.max() > 0:
            kept[t] = labels[t] == counts.argmax()
    return kept


def _spread(mask: np.ndarray) -> np.ndarray:
    """Return (variance of x + variance of y) / area of each frame [T] of `mask`; infinite where it is empty."""
    area = mask.sum(axis=(1, 2)).astype(float)
    y, x = np.mgrid[: mask.shape[1], : mask.shape[2]]
    safe = np.maximum(area, 1.0)
    total = np.zeros(len(area))
    for axis in (x, y):
        mean = (mask * axis).sum(axis=(1, 2)) / safe
        total += (mask * axis**2).sum(axis=(1, 2)) / safe - mean**2
    return np.where(area > 0, total / safe, np.inf)


def _colour(pixels: np.ndarray, foreground: _Foreground) -> Colour | None:
    """Return the colour that most of the foreground's pixels are nearest to by hue."""
    hues = _hue(pixels[foreground.sized][foreground.mask[foreground.sized]])
    references = _hue(np.array([RGB[name] for name in COLOURS], dtype=np.float32))
    turn = np.abs(hues[:, None] - references[None, :])
    votes = np.bincount(np.minimum(turn, 2 * np.pi - turn).argmin(axis=1), minlength=len(COLOURS))
    best = int(votes.argmax())
    return COLOURS[best] if votes[best] >= _MIN_HUE_SHARE * votes.sum() else None


def _hue(rgb: np.ndarray) -> np.ndarray:
    """Return the hue angle, in radians, of colours [N, 3]."""
    red, green, blue = rgb[:, 0], rgb[:, 1], rgb[:, 2]
    return np.arctan2(np.sqrt(3.0) * (green - blue), 2 * red - green - blue) % (2 * np.pi)


def _soft_coverage(pixels: np.ndarray, foreground: _Foreground) -> np.ndarray:
    """Return how much of each pixel the shape covers, float32 [T, H, W] in 0..1, zero away from the piece.

    A pixel is a blend of the background's and the shape's colour; the share is its place on the line between them.
    """
    near = foreground.mask
    for _ in range(4):  # the soft edge lies outside the half-way mask
        near = _dilate(near)
    background = np.median(pixels[~near], axis=0) if (~near).any() else np.zeros(3, np.float32)
    away = pixels - background
    strength = np.abs(away).sum(axis=-1)
    inside = foreground.mask & foreground.seen[:, None, None]
    solid = inside & (strength >= np.quantile(strength[inside], 0.5))
    line = away[solid].mean(axis=0)
    share = away @ line / max(float(line @ line), 1e-6)
    return np.where(near, np.clip(share, 0.0, 1.0), 0.0).astype(np.float32)


def _dilate(mask: np.ndarray) -> np.ndarray:
    """Grow `mask` bool [T, H, W] by one pixel along both axes."""
    grown = mask.copy()
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    grown[:, :, 1:] |= mask[:, :, :-1]
    grown[:, :, :-1] |= mask[:, :, 1:]
    return grown


def _centres(cover: np.ndarray) -> np.ndarray:
    """Return the centre of mass (x, y) of each frame of `cover` [T, H, W], as [T, 2] pixels."""
    weight = np.maximum(cover.sum(axis=(1, 2)), 1e-6)
    x = (cover.sum(axis=1) @ np.arange(cover.shape[2])) / weight
    y = (cover.sum(axis=2) @ np.arange(cover.shape[1])) / weight
    return np.stack([x, y], axis=1)


def _motion(centres: np.ndarray, seen: np.ndarray) -> Motion | None:
    """Return the direction of the line fitted to the centres [T, 2] of the frames where the shape is seen."""
    num_frames = len(seen)
    times = np.flatnonzero(seen)
    third = num_frames / 3
    if num_frames < 2 or len(times) < max(2, _MIN_FRAMES_SHARE * num_frames):
        return None
    if times[0] >= third or times[-1] < num_frames - third:
        return None
    centred = times - times.mean()
    slope = centred @ centres[times] / (centred @ centred)
    dx, dy = slope * (num_frames - 1)
    main, across = (dx, dy) if abs(dx) >= abs(dy) else (dy, dx)
    if abs(main) < _MIN_TRAVEL_PIXELS or abs(main) < _MIN_AXIS_RATIO * abs(across):
        return None
    if abs(dx) >= abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def _shape(cover: np.ndarray, centres: np.ndarray, seen: np.ndarray) -> Shape | None:
    """Return the shape whose ideal picture, at some size and blur, correlates best with the clip's mean shape.

    The frames are aligned at their centres and averaged first, which removes most of the noise of single frames.
    """
    mean = np.mean([_around(cover[t], centres[t]) for t in np.flatnonzero(seen)], axis=0).ravel()
    norm = float(np.linalg.norm(mean))
    if norm < 1e-6:
        return None
    templates, owners = _templates()
    match = templates @ (mean / norm)
    best = int(match.argmax())
    return SHAPES[owners[best]] if match[best] >= _MIN_MATCH else None


def _around(cover: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Sample `cover` [H, W] bilinearly on a [G, G] grid of pixels around `centre` (x, y); zero outside."""
    height, width = cover.shape
    corner = centre - (_GRID - 1) / 2
    base = np.floor(corner).astype(int)
    part = corner - base
    window = np.zeros((_GRID + 1, _GRID + 1), np.float32)
    y0, x0 = max(base[1], 0), max(base[0], 0)
    y1, x1 = min(base[1] + _GRID + 1, height), min(base[0] + _GRID + 1, width)
    window[y0 - base[1] : y1 - base[1], x0 - base[0] : x1 - base[0]] = cover[y0:y1, x0:x1]
    rows = window[:-1] * (1 - part[1]) + window[1:] * part[1]
    return rows[:, :-1] * (1 - part[0]) + rows[:, 1:] * part[0]


@functools.cache
def _templates() -> tuple[np.ndarray, np.ndarray]:
    """Return unit-length ideal pictures [K, G * G], centred on their centres of mass, and the shape index [K].

    Cached: they are the same for every clip.
    """
    axis = np.arange(_GRID) - (_GRID - 1) / 2
    pictures, owners = [], []
    for owner, shape in enumerate(SHAPES):
        for diameter in _TEMPLATE_DIAMETERS:
            # A triangle's centre of mass lies a sixth of its height below the centre of its box.
            drop = diameter / 6 if shape == "triangle" else 0.0
            sharp = coverage(shape, axis[None, :], axis[:, None] + drop, float(diameter))
            for sigma in _TEMPLATE_BLURS:
                picture = gaussian_blur(sharp, sigma)
                pictures.append((picture / np.linalg.norm(picture)).ravel())
                owners.append(owner)
    return np.array(pictures, np.float32), np.array(owners)


def gaussian_blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Blur a picture [H, W] with a Gaussian of `sigma` pixels, edges repeated."""
    if sigma <= 0:
        return picture
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    blurred = picture
    for axis in (0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (reach, reach)
        padded = np.pad(blurred, pad, mode="edge")
        blurred = np.apply_along_axis(np.convolve, axis, padded, kernel, mode="valid")
    return blurred
