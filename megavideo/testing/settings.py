"""Settings of the smallest run on a dataset of `testing.dataset`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megavideo.config.load import load
from megavideo.config.schema.train import TrainRun
from megavideo.testing.dataset import CHANNELS, TEXT_DIM

_MICRO: Mapping[str, Any] = {
    "run": "micro",
    "model.latent_channels": CHANNELS,
    "model.text_dim": TEXT_DIM,
    "data.tokens_per_pack": 64,
    "data.text_tokens_per_pack": 64,
    "data.max_segments": 8,
    "optim.warmup_steps": 0,
    "train.packs_per_step": 2,
    "train.steps": 8,
    "checkpoint.every": 1000,
    "observe.tensorboard": "false",
    "observe.peak_tflops": 1.0,
}


def micro_words(**settings: Any) -> list[str]:
    """Words of the command line; `settings` write the dots of a name as two underscores, as in `train__steps`."""
    given = {name.replace("__", "."): value for name, value in settings.items()}
    return [f"{name}={'null' if value is None else value}" for name, value in {**_MICRO, **given}.items()]


def micro_config(**settings: Any) -> TrainRun:
    """The config of the same words."""
    return load(TrainRun, "train", micro_words(**settings))
