"""Cross-field rules of `megavideo fit`."""

from __future__ import annotations

from pathlib import PurePath

from megavideo.config.schema.fit import FitRun
from megavideo.errors import ConfigError


def export_needs_clips(cfg: FitRun) -> None:
    """What a token costs hangs on the clip that it is in."""
    if cfg.export is None:
        return
    if cfg.six_nd:
        rule = "a law of language models recommends no model of video"
        raise ConfigError("export", cfg.export, rule, "drop it, or fit runs of megavideo")
    if cfg.clip_tokens is None:
        rule = "needs the video tokens of a clip, on which the FLOPs of a model hang"
        raise ConfigError("export", cfg.export, rule, "add clip_tokens=32760, or what the clips of the run will have")
    if PurePath(cfg.export).suffix != ".yaml":
        raise ConfigError("export", cfg.export, "is a file for configs/model", f"take export={cfg.export}.yaml")


def clips_are_of_video(cfg: FitRun) -> None:
    """Six N D is of language models."""
    if cfg.six_nd and cfg.clip_tokens is not None:
        rule = "has no effect with six_nd=true, which is for language models"
        raise ConfigError("clip_tokens", cfg.clip_tokens, rule, "drop one of the two")


def text_and_shape_need_clips(cfg: FitRun) -> None:
    """They say what is recommended, and nothing is without clip_tokens."""
    if cfg.clip_tokens is not None:
        return
    for name in ("text_tokens", "shape"):
        value = getattr(cfg, name)
        if value != getattr(FitRun, name):
            raise ConfigError(name, value, "has no effect without clip_tokens", "add clip_tokens=32760, or drop it")


def intervals_need_resamples(cfg: FitRun) -> None:
    """A confidence is one of intervals."""
    if cfg.resamples == 0 and cfg.confidence != FitRun.confidence:
        rule = "has no effect with resamples=0"
        raise ConfigError("confidence", cfg.confidence, rule, "add resamples=200, or drop it")


FIT_RULES = (export_needs_clips, clips_are_of_video, text_and_shape_need_clips, intervals_need_resamples)
