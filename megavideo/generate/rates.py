"""The frame rate of a sample: what the model is told, and what its file plays at."""

from __future__ import annotations

import math

from megavideo.errors import ConfigError
from megavideo.types import IMAGE_FPS, Grid

_SAME = 0.01  # 30 and 29.97 are one rate


def played_fps(asked: float | None, trained: float, is_told: bool) -> float:
    """Frames a second of the samples: those that were `asked` for, else those that the run was `trained` on.

    Raises ConfigError where another rate than that is asked of a model that is told none (`is_told`): its motion would
    be the same, and only played faster or slower.
    """
    if asked is None:
        return trained
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
