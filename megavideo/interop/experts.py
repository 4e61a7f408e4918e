"""Runs that were trained on a part of the noise levels: what may be sampled with or exported, alone or as a pair."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol

from megavideo.config.schema.train import TrainRun
from megavideo.data.storage.local import LocalStorage
from megavideo.encoders.folder import DESCRIPTION_NAME, same_encoders
from megavideo.errors import ConfigError

_WHOLE = (0.0, 1.0)
# what two experts' noise levels, and the form of their prediction, follow from
_SHARED = ("objective", "prediction", "shift", "shift_by_size")


class Expert(Protocol):
    """A run of a pair; the folder of its encoders may be empty where they are not needed."""

    @property
    def config(self) -> TrainRun:
        """Its settings."""

    @property
    def encoders_folder(self) -> Path:
        """Where they are kept."""


def check_whole(config: TrainRun) -> None:
    """Raise ConfigError where a run that is to be sampled alone was trained on a part of the noise levels."""
    trained = config.diffusion.sigma_range
    if trained is not None:
        rule = f"the run {config.name} is one of two experts (diffusion.sigma_range={list(trained)})"
        raise ConfigError("low_ckpt", None, rule, "give the high expert as ckpt=, and low_ckpt= and boundary=")


def check_pair(high: Expert, low: Expert, boundary: float) -> None:
    """Raise ConfigError where two experts cannot share the steps of a sample between them.

    They have one model's shape, one noise schedule and one dataset's encoders, and each was trained on all levels that
    it is given: the high one from `boundary` to 1, the low one from 0 to it.
    """
    _check_same("model", high.config.model, low.config.model, [f.name for f in dataclasses.fields(high.config.model)])
    _check_same("diffusion", high.config.diffusion, low.config.diffusion, _SHARED)
    both_kept = all((run.encoders_folder / DESCRIPTION_NAME).is_file() for run in (high, low))
    if both_kept and not same_encoders(LocalStorage(high.encoders_folder), "", low.encoders_folder):
        rule = f"{high.encoders_folder} and {low.encoders_folder} differ: the experts know different latents or texts"
        raise ConfigError(
            "low_ckpt", str(low.encoders_folder.parent), rule, "give runs on datasets of the same encoders"
        )
    for run, ends, which in ((high, (boundary, 1.0), "ckpt"), (low, (0.0, boundary), "low_ckpt")):
        trained = run.config.diffusion.sigma_range or _WHOLE
        if trained[0] > ends[0] or trained[1] < ends[1]:
            own = f"the run {run.config.name} was trained on diffusion.sigma_range={list(trained)}"
            rule = f"gives the levels from {ends[0]:g} to {ends[1]:g} to {which}, and {own}"
            raise ConfigError("boundary", boundary, rule, "take a level at which the two ranges meet")


def _check_same(section: str, high: object, low: object, names: list[str] | tuple[str, ...]) -> None:
    for name in names:
        one, other = getattr(high, name), getattr(low, name)
        if one != other:
            rule = f"{section}.{name} is {other}, and {one} in ckpt: experts of one pair have the same"
            raise ConfigError("low_ckpt", None, rule, "give the other expert of the same pair")
