"""The frame rate of a sample: what the model is told, and what its file plays at."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from megavideo.border.fields import Positive
from megavideo.errors import ConfigError
from megavideo.types import IMAGE_FPS, Grid

_SAME = 0.01  # 30 and 29.97 are one rate
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRates:
    """Frames a second of the videos that a run was trained on: of most of them, and the lowest and highest of all.

    The last two are None where they are not known, as in runs of earlier versions and imported ones.
    """

    fps: Positive
    lowest: Positive | None = None
    highest: Positive | None = None

    def hold(self, fps: float) -> bool:
        """Whether a model that was told these rates has seen videos as slow, and as fast, as `fps`."""
        if self.lowest is None or self.highest is None:
            return True
        return self.lowest * (1 - _SAME) <= fps <= self.highest * (1 + _SAME)


def played_fps(asked: float | None, rates: RunRates, latent: Grid, is_told: bool) -> float:
    """Frames a second of samples of this size: those that were `asked` for, else those of most that it was trained on.

    A warning tells of a rate that a model which is told rates has never been told of a video.

    Raises ConfigError where another rate than that is asked of a model that is told none (`is_told`): its motion would
    be the same, and only played faster or slower.
    """
    trained = rates.fps
    if asked is None:
        return trained
    if is_told and latent.t > 1 and not rates.hold(asked):
        _log.warning(
            "sample: fps=%g is not among the rates that the model was told in training, %g to %g frames a second: its "
            "motion may have the wrong speed. Remedy: take fps= from %g to %g, and change the file's rate afterwards",
            asked, rates.lowest, rates.highest, rates.lowest, rates.highest,
        )  # fmt: skip
    if not is_told and not math.isclose(asked, trained, rel_tol=_SAME):
        raise ConfigError(
            "fps",
            asked,
            f"the model is not told frame rates (model.fps_conditioning=false): its videos move as those that it was "
            f"trained on, most of which have {trained:g} frames a second",
            "leave fps out, or train with model.fps_conditioning=true",
        )
    return asked


def told_fps(asked: float | None, trained: float, latent: Grid) -> float:
    """What the model is told: what was `asked` for, else what training told it of samples of this size."""
    if asked is not None:
        return asked
    return IMAGE_FPS if latent.t == 1 else trained
