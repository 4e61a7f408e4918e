"""Whether a dataset stores what a model with further input channels is told of the frames that it is given."""

from __future__ import annotations

from typing import get_args

from megavideo.config.schema.prepare import GivenTask
from megavideo.config.schema.train import TrainRun
from megavideo.data.dataset.dataset import LatentDataset
from megavideo.errors import ConfigError


def check_given_latents(config: TrainRun, dataset: LatentDataset, field: str) -> None:
    """Raise ConfigError, naming the `field` that the dataset is of, where it lacks the latents of a task with a weight.

    `config` is of one stage of a run.
    """
    if not config.model.given_channels:
        return
    conditions = config.diffusion.conditions
    needed = [task for task in get_args(GivenTask) if getattr(conditions, task) > 0]
    missing = [task for task in needed if task not in dataset.info.given_latents]
    if missing:
        tasks = ",".join(sorted({*needed, *dataset.info.given_latents}))
        raise ConfigError(
            field,
            dataset.uri,
            f"stores no latents of the frames that {' and '.join(missing)} gives, which a model with "
            f"model.given_channels={config.model.given_channels} is told",
            f"encode the clips with given_latents=[{tasks}] to another out=",
        )
