"""Whether a dataset stores what a model with further input channels, or an image embedding, is told of given frames."""

from __future__ import annotations

from typing import get_args

from megavideo.config.schema.prepare import GivenTask
from megavideo.config.schema.train import TrainRun
from megavideo.data.dataset.dataset import LatentDataset
from megavideo.errors import ConfigError


def check_given_latents(config: TrainRun, dataset: LatentDataset, field: str) -> None:
    """Raise ConfigError, naming the `field` that the dataset is of, where it lacks what a task with a weight gives.

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
    width, stored = config.model.image_dim, dataset.info.image_dim
    if width is not None and needed and stored != width:
        what = "no embeddings" if stored is None else f"embeddings of width {stored}"
        rule = f"stores {what} of first frames, which a model with model.image_dim={width} is told"
        remedy = "encode the clips with image_encoder.path=FOLDER, that of the model's pipeline, to another out="
        raise ConfigError(field, dataset.uri, rule, remedy)
