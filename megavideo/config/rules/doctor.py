"""Cross-field rules of `megavideo doctor`."""

from __future__ import annotations

import dataclasses

from megavideo.config.schema.doctor import DoctorRun
from megavideo.errors import ConfigError


def machine_has_no_settings(cfg: DoctorRun) -> None:
    """Without a dataset the machine is looked at as it is."""
    if cfg.data is not None:
        return
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if value != field.default:
            raise ConfigError(field.name, value, "has no effect without a dataset", "add data=FOLDER, or drop it")


def ranks_share_packs(cfg: DoctorRun) -> None:
    """Every data-parallel rank has as many packs, and as many GPUs."""
    if cfg.packs_per_step % cfg.dp:
        above = -(-cfg.packs_per_step // cfg.dp) * cfg.dp
        rule = f"must be a multiple of dp={cfg.dp}"
        raise ConfigError("packs_per_step", cfg.packs_per_step, rule, f"take packs_per_step={above}")
    if cfg.gpus is not None and cfg.gpus % cfg.dp:
        above = -(-cfg.gpus // cfg.dp) * cfg.dp
        raise ConfigError("gpus", cfg.gpus, f"must be a multiple of dp={cfg.dp}", f"take gpus={above}, or another dp")


DOCTOR_RULES = (machine_has_no_settings, ranks_share_packs)
