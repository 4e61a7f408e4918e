"""Cross-field rules of `megavideo doctor`."""

from __future__ import annotations

import dataclasses

from megavideo.config.schema.doctor import DoctorRun
from megavideo.errors import ConfigError


def machine_has_no_settings(cfg: DoctorRun) -> None:
    """Without a dataset the machine is looked at as it is; with one nothing is timed."""
    if cfg.data is not None:
        for setting in dataclasses.fields(cfg.attention):
            value = getattr(cfg.attention, setting.name)
            if value != setting.default:
                raise ConfigError(
                    f"attention.{setting.name}", value, "has no effect with a dataset", "drop it, or data"
                )
        return
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if field.name != "attention" and value != field.default:
            raise ConfigError(field.name, value, "has no effect without a dataset", "add data=FOLDER, or drop it")


def timing_has_an_effect(cfg: DoctorRun) -> None:
    """Every segment has tokens of both kinds, and packs are described only where something is timed."""
    times = cfg.attention
    for name, tokens in (("tokens", times.tokens), ("text_tokens", times.text_tokens)):
        if tokens is not None and tokens < times.segments:
            rule = f"must be at least attention.segments={times.segments}"
            raise ConfigError(f"attention.{name}", tokens, rule, "take more tokens, or fewer segments")
    if times.time is False and times != dataclasses.replace(type(times)(), time=False):
        raise ConfigError("attention.time", False, "leaves the other settings of attention without effect", "drop it")


def ranks_share_packs(cfg: DoctorRun) -> None:
    """Every data-parallel rank has as many packs, and as many GPUs."""
    if cfg.packs_per_step % cfg.dp:
        above = -(-cfg.packs_per_step // cfg.dp) * cfg.dp
        rule = f"must be a multiple of dp={cfg.dp}"
        raise ConfigError("packs_per_step", cfg.packs_per_step, rule, f"take packs_per_step={above}")
    if cfg.gpus is not None and cfg.gpus % cfg.dp:
        above = -(-cfg.gpus // cfg.dp) * cfg.dp
        raise ConfigError("gpus", cfg.gpus, f"must be a multiple of dp={cfg.dp}", f"take gpus={above}, or another dp")


DOCTOR_RULES = (machine_has_no_settings, timing_has_an_effect, ranks_share_packs)
