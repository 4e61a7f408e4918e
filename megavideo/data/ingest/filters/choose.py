"""The scores of a run and the bounds within which a clip is kept."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from megavideo.config.schema.clip_filters import FiltersConfig
from megavideo.config.schema.clip_scores import ScoresConfig
from megavideo.config.texts import OwnScore, parse_own_score
from megavideo.data.ingest.filters.aesthetic import Aesthetic
from megavideo.data.ingest.filters.change import Change
from megavideo.data.ingest.filters.motion import Motion
from megavideo.data.ingest.filters.score import ClipView, Score
from megavideo.data.ingest.filters.sharpness import Sharpness
from megavideo.errors import ConfigError, DataError

_REMEDY = "correct the path or its module, and put its folder on PYTHONPATH"


@dataclass(frozen=True)
class Bound:
    """A clip is kept where score `name` is from `minimum` to `maximum`; what falls out below or above, by its name."""

    name: str
    minimum: float | None
    maximum: float | None
    below: str
    above: str


class OwnScoreError(DataError):
    """A user's score that failed on a clip."""


class _Own:
    """A user's function as a score."""

    for_images: bool = True

    def __init__(self, name: str, path: str, function: Callable[[np.ndarray, ClipView], float]) -> None:
        self.name = name
        self._path = path
        self._function = function

    def score(self, frames: np.ndarray, clip: ClipView) -> float:
        """The function's value; OwnScoreError where it fails or gives no finite number."""
        try:
            value = float(self._function(frames, clip))
        except Exception as error:
            raise OwnScoreError(f"the own score {self._path} failed: {type(error).__name__}: {error}") from error
        if not np.isfinite(value):
            raise OwnScoreError(f"the own score {self._path} gave {value}")
        return value


def build_scores(own_paths: tuple[str, ...]) -> tuple[Score, ...]:
    """The built-in scores and a user's, by dotted path. Raises ConfigError for a path that leads to no function."""
    return (Change(), Motion(), Sharpness(), Aesthetic(), *(_load(path) for path in own_paths))


def own_scores(filters: FiltersConfig) -> tuple[OwnScore, ...]:
    """The user's scores as the settings name them."""
    return tuple(parse_own_score(f"filters.own[{position}]", text) for position, text in enumerate(filters.own))


def bounds(filters: FiltersConfig) -> tuple[Bound, ...]:
    """What is asked of the scores, in the order in which it is applied; images are asked only for what they have."""
    named = (
        Bound("change", filters.min_change, None, "static", ""),
        Bound("motion", filters.min_motion, filters.max_motion, "slow", "fast"),
        Bound("sharpness", filters.min_sharpness, None, "blurred", ""),
        Bound("aesthetic", filters.min_aesthetic, None, "plain", ""),
        *(Bound(own.name, own.minimum, own.maximum, own.name, own.name) for own in own_scores(filters)),
    )
    return tuple(bound for bound in named if bound.minimum is not None or bound.maximum is not None)


def score_bounds(scores: ScoresConfig) -> tuple[Bound, ...]:
    """What is asked of the scores that models give, in the order in which it is applied."""
    found = (
        _named("nsfw", scores.nsfw.minimum, scores.nsfw.maximum),
        _named("watermark", scores.watermark.minimum, scores.watermark.maximum),
        _named("text_area", scores.text_area.minimum, scores.text_area.maximum),
        _named("learned_aesthetic", scores.learned_aesthetic.minimum, scores.learned_aesthetic.maximum),
        _named("codec_motion", scores.codec_motion.minimum, scores.codec_motion.maximum),
        _named("clip", scores.clip.minimum, scores.clip.maximum),
    )
    return tuple(bound for bound in found if bound.minimum is not None or bound.maximum is not None)


def _named(name: str, minimum: float | None, maximum: float | None) -> Bound:
    """What falls out on either side is called by the score."""
    return Bound(name, minimum, maximum, name, name)


def own_digests(own_paths: tuple[str, ...]) -> tuple[str, ...]:
    """Hashes of the files in which a user's functions stand, empty for what stands in none.

    Raises ConfigError for one that cannot be imported.
    """
    files = [Path(getattr(_module(path), "__file__", None) or "") for path in own_paths]
    return tuple(hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "" for file in files)


def _load(path: str) -> Score:
    name = path.rpartition(".")[2]
    function = getattr(_module(path), name, None)
    if function is None:
        raise ConfigError("filters.own", path, f"cannot be imported (its module has no {name})", _REMEDY)
    if not callable(function):
        raise ConfigError("filters.own", path, "is no function", _REMEDY)
    return _Own(name, path, function)


def _module(path: str) -> ModuleType:
    """The module of a function by its dotted path."""
    try:
        return importlib.import_module(path.rpartition(".")[0])
    except Exception as error:  # the module is the user's, and may raise anything
        raise ConfigError(
            "filters.own", path, f"cannot be imported ({type(error).__name__}: {error})", _REMEDY
        ) from error
