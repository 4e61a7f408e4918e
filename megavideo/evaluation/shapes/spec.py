"""What the benchmark of moving shapes contains: attributes, combinations, the held-out split and the captions.

A combination is one colour, one shape and one motion. Half of the 48 combinations are trained on and the other half
is never seen, while every pair of attributes is: a model that meets the held-out half has learned to compose them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Colour = Literal["red", "green", "blue", "yellow"]
Shape = Literal["square", "circle", "triangle"]
Motion = Literal["left", "right", "up", "down"]

COLOURS: tuple[Colour, ...] = get_args(Colour)
SHAPES: tuple[Shape, ...] = get_args(Shape)
MOTIONS: tuple[Motion, ...] = get_args(Motion)

RGB: Mapping[Colour, tuple[int, int, int]] = {
    "red": (222, 48, 44),
    "green": (46, 190, 74),
    "blue": (52, 92, 232),
    "yellow": (238, 208, 48),
}
"""The colour of each name, 0..255."""

DIRECTION: Mapping[Motion, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Unit vector (x, y) of each motion, y pointing down."""

CHANCE_COLOUR = 1 / len(COLOURS)
CHANCE_SHAPE = 1 / len(SHAPES)
CHANCE_MOTION = 1 / len(MOTIONS)

_CLIP_WORDINGS = (
    "a {colour} {shape} moves {motion}",
    "a {colour} {shape} moving {motion}",
    "{colour} {shape} moving {motion}",
    "the {colour} {shape} moves {motion}",
)
_IMAGE_WORDINGS = ("a {colour} {shape}", "a picture of a {colour} {shape}", "{colour} {shape}", "the {colour} {shape}")
_MOTION_WORDS: Mapping[Motion, tuple[str, ...]] = {
    "left": ("left", "to the left"),
    "right": ("right", "to the right"),
    "up": ("up", "upward"),
    "down": ("down", "downward"),
}
NUM_CLIP_WORDINGS = len(_CLIP_WORDINGS) * 2
NUM_IMAGE_WORDINGS = len(_IMAGE_WORDINGS)


@dataclass(frozen=True)
class Combination:
    """One colour, one shape and one motion; `motion` is None for a single image."""

    colour: Colour
    shape: Shape
    motion: Motion | None


@dataclass(frozen=True)
class Split:
    """The 24 combinations that are trained on and the 24 that are held out."""

    trained: tuple[Combination, ...]
    held_out: tuple[Combination, ...]


def split() -> Split:
    """Divide the 48 combinations in two halves, always the same.

    Shape s is trained where (colour + motion + s) mod 4 is 0 or 1. So each (colour, shape) is seen with two motions,
    each (shape, motion) in two colours and each (colour, motion) with one or two shapes.
    """
    trained: list[Combination] = []
    held_out: list[Combination] = []
    for (c, colour), (s, shape), (m, motion) in itertools.product(
        enumerate(COLOURS), enumerate(SHAPES), enumerate(MOTIONS)
    ):
        half = trained if (c + s + m) % 4 < 2 else held_out
        half.append(Combination(colour, shape, motion))
    return Split(tuple(trained), tuple(held_out))


def caption(combination: Combination, wording: int = 0) -> str:
    """Return the caption of `combination`; `wording` is taken modulo the number of wordings, and 0 is the plain one."""
    if combination.motion is None:
        template = _IMAGE_WORDINGS[wording % NUM_IMAGE_WORDINGS]
        return template.format(colour=combination.colour, shape=combination.shape)
    template = _CLIP_WORDINGS[wording % len(_CLIP_WORDINGS)]
    words = _MOTION_WORDS[combination.motion]
    motion = words[wording // len(_CLIP_WORDINGS) % len(words)]
    return template.format(colour=combination.colour, shape=combination.shape, motion=motion)
