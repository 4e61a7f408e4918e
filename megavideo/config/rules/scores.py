"""Cross-field rules of the scores of `megavideo ingest`."""

from __future__ import annotations

from typing import Any

from megavideo.config.schema.clip_scores import ScoresConfig
from megavideo.config.schema.prepare import IngestRun
from megavideo.errors import ConfigError

_NEEDED = {
    "text_area": ("label",),
    "watermark": ("label",),
    "nsfw": ("label",),
    "learned_aesthetic": ("head",),
    "embedding": ("duplicate_cosine",),
}
_THRESHOLDS = ("minimum", "maximum", "duplicate_cosine", "label", "head")


def models_on(scores: ScoresConfig) -> list[str]:
    """Names of what is measured by a model."""
    return [name for name in ("clip", *_NEEDED) if getattr(scores, name).folder is not None]


def scores_on(scores: ScoresConfig) -> list[str]:
    """Names of the scores that are asked for; an embedding is none."""
    chosen = [name for name in models_on(scores) if name != "embedding"]
    return [*chosen, *(["codec_motion"] if scores.codec_motion.enabled else [])]


def ingest_scores_have_what_they_need(cfg: IngestRun) -> None:
    """A model needs its label or head, and thresholds need a model."""
    for name in ("clip", *_NEEDED):
        section = getattr(cfg.scores, name)
        if section.folder is None:
            _idle(f"scores.{name}", section, f"scores.{name}.folder")
            continue
        for needed in _NEEDED.get(name, ()):
            if getattr(section, needed) is None:
                field = f"scores.{name}.{needed}"
                raise ConfigError(field, None, f"scores.{name}.folder needs it", f"add {field}=VALUE")
    if not cfg.scores.codec_motion.enabled:
        _idle("scores.codec_motion", cfg.scores.codec_motion, "scores.codec_motion.enabled=true")


def ingest_score_ranges_are_not_empty(cfg: IngestRun) -> None:
    """A least value is at most the greatest."""
    for name in scores_on(cfg.scores):
        section = getattr(cfg.scores, name)
        if section.minimum is not None and section.maximum is not None and section.minimum > section.maximum:
            rule = f"no clip can be at least {section.minimum:g} and at most {section.maximum:g}"
            field = f"scores.{name}.maximum"
            raise ConfigError(field, section.maximum, rule, f"take {field}={section.minimum:g} or more")


def _idle(place: str, section: Any, switch: str) -> None:
    for name in _THRESHOLDS:
        value = getattr(section, name, None)
        if value is not None:
            raise ConfigError(f"{place}.{name}", value, f"has no effect without {switch}", f"give {switch}, or drop it")
