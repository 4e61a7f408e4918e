"""Renders one antialiased shape that moves over a dark background.

Coverage comes from signed distances, so that a shape moves smoothly by fractions of a pixel.
Shape legend: T frames, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megavideo.evaluation.shapes.spec import DIRECTION, RGB, Combination, Shape

CLIP_SIZES = ((64, 64), (48, 80), (80, 48))  # height, width: one area and three aspect ratios, all multiples of 16
AREA_PIXELS = 64 * 64  # the largest area among them
CLIP_FRAMES = (13, 17, 21)  # 1 + 4n, as a causal autoencoder takes them
CLIP_RATES = (8.0, 12.0, 16.0)

_DIAMETER_PIXELS = (22.0, 28.0)
_MAX_SPEED_PIXELS = 6.0  # per frame
_MIN_TRAVEL_SHARE = 0.85  # of the way that the picture leaves
_BACKGROUND_LEVELS = (14.0, 34.0)


@dataclass(frozen=True)
class Scene:
    """All that determines the pixels of a clip. Lengths are in pixels, `start` and `end` are centres (x, y)."""

    combination: Combination
    num_frames: int
    height: int
    width: int
    fps: float
    diameter: float
    start: tuple[float, float]
    end: tuple[float, float]
    colour: tuple[float, float, float]
    background_top: tuple[float, float, float]
    background_bottom: tuple[float, float, float]


def draw_scene(combination: Combination, rng: np.random.Generator) -> Scene:
    """Draw size, duration, rate, place, speed and tints for `combination`; one frame where its motion is None.

    The shape is inside the picture in every frame.
    """
    height, width = CLIP_SIZES[rng.integers(len(CLIP_SIZES))]
    num_frames = 1 if combination.motion is None else int(CLIP_FRAMES[rng.integers(len(CLIP_FRAMES))])
    fps = CLIP_RATES[rng.integers(len(CLIP_RATES))]
    diameter = float(rng.uniform(*_DIAMETER_PIXELS))
    margin = diameter / 2 + 2  # the tip of a triangle reaches a pixel further than its box
    # The range of centres along each axis; the way moved is taken out of it before the start is drawn.
    low = np.array([margin, margin])
    high = np.array([width - margin, height - margin])
    way = np.zeros(2)
    if combination.motion is not None:
        direction = np.array(DIRECTION[combination.motion], dtype=float)
        room = float(np.abs(direction) @ (high - low))
        travel = min(room, _MAX_SPEED_PIXELS * (num_frames - 1)) * float(rng.uniform(_MIN_TRAVEL_SHARE, 1.0))
        way = direction * travel
    start = rng.uniform(low - np.minimum(way, 0), high - np.maximum(way, 0))
    end = start + way
    colour = np.clip(np.array(RGB[combination.colour]) + rng.uniform(-10, 10, 3), 0, 255)
    level = rng.uniform(*_BACKGROUND_LEVELS)
    top = level + rng.uniform(-4, 4, 3)
    bottom = top + rng.uniform(-8, 8)
    return Scene(
        combination=combination,
        num_frames=num_frames,
        height=height,
        width=width,
        fps=fps,
        diameter=diameter,
        start=(float(start[0]), float(start[1])),
        end=(float(end[0]), float(end[1])),
        colour=_triple(colour),
        background_top=_triple(np.clip(top, 0, 255)),
        background_bottom=_triple(np.clip(bottom, 0, 255)),
    )


def render(scene: Scene) -> np.ndarray:
    """Return the frames of `scene`, uint8 [T, H, W, 3]."""
    progress = np.linspace(0.0, 1.0, scene.num_frames)[:, None]
    centres = np.array(scene.start) + progress * (np.array(scene.end) - np.array(scene.start))  # [T, 2]
    x = np.arange(scene.width) + 0.5 - centres[:, 0, None]  # [T, W]
    y = np.arange(scene.height) + 0.5 - centres[:, 1, None]  # [T, H]
    cover = coverage(scene.combination.shape, x[:, None, :], y[:, :, None], scene.diameter)[..., None]
    height_share = np.linspace(0.0, 1.0, scene.height)[:, None, None]
    top, bottom = np.array(scene.background_top), np.array(scene.background_bottom)
    background = top + height_share * (bottom - top)  # [H, 1, 3]
    frames = background + cover * (np.array(scene.colour) - background)
    return np.rint(frames).astype(np.uint8)


def coverage(shape: Shape, x: np.ndarray, y: np.ndarray, diameter: float) -> np.ndarray:
    """Return how much of each pixel the shape covers, 0..1.

    `x` and `y` are pixel centres relative to the centre of the shape's bounding box, which is `diameter` wide and
    high; they broadcast. The triangle points up.
    """
    radius = diameter / 2
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - radius
    else:
        # The slanted edges fall by twice what they run: normal (2, -1) / sqrt(5), through the apex (0, -radius).
        slanted = (2 * np.abs(x) - y - radius) / np.sqrt(5.0)
        distance = np.maximum(slanted, y - radius)
    return np.clip(0.5 - distance, 0.0, 1.0)


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    """Return three array entries as floats."""
    return float(values[0]), float(values[1]), float(values[2])
