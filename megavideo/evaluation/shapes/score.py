"""Counts how many samples show what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megavideo.evaluation.shapes.measure import Measured, measure
from megavideo.evaluation.shapes.spec import Combination


@dataclass(frozen=True)
class Verdict:
    """What one prompt asked for and what its sample shows."""

    asked: Combination
    shown: Measured

    @property
    def colour(self) -> bool:
        """Whether the colour is the one asked for."""
        return self.shown.colour == self.asked.colour

    @property
    def shape(self) -> bool:
        """Whether the shape is the one asked for."""
        return self.shown.shape == self.asked.shape

    @property
    def motion(self) -> bool:
        """Whether the motion is the one asked for; for an image, whether none is shown."""
        return self.shown.motion == self.asked.motion


@dataclass(frozen=True)
class Score:
    """Shares (0..1) of `prompts` samples that show the colour, shape and motion asked for, and each one's verdict."""

    prompts: int
    colour: float
    shape: float
    motion: float
    verdicts: tuple[Verdict, ...] = ()


def score(samples: Sequence[np.ndarray], truths: Sequence[Combination]) -> Score:
    """Measure each sample, uint8 [T, H, W, 3], against the combination asked for.

    Raises ValueError where the two differ in number or there is nothing to score.
    """
    verdicts = tuple(Verdict(asked, measure(frames)) for frames, asked in zip(samples, truths, strict=True))
    if not verdicts:
        raise ValueError("there is no sample to score")
    number = len(verdicts)
    return Score(
        prompts=number,
        colour=sum(verdict.colour for verdict in verdicts) / number,
        shape=sum(verdict.shape for verdict in verdicts) / number,
        motion=sum(verdict.motion for verdict in verdicts) / number,
        verdicts=verdicts,
    )
