"""Latents of given frames, stored beside those of a clip: of a video whose other frames are grey.

Models with further input channels are told them (`model.given_channels`). They do not follow from the clip's own
latent: through a causal autoencoder the first frame reaches into the latent frames after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from megavideo.config.schema.prepare import GivenTask

# Columns of a shard by the task whose frames are given, each of them a latent [C, t, h, w] as the clip's own.
GIVEN_COLUMNS: Mapping[GivenTask, str] = {
    "image_to_video": "given_image_to_video",
    "interpolation": "given_interpolation",
}
GIVEN_ENCODING = "ndarray:float16"


def given_columns(tasks: Sequence[GivenTask]) -> dict[str, str]:
    """The columns of a dataset that stores these tasks, with their encodings."""
    return {GIVEN_COLUMNS[task]: GIVEN_ENCODING for task in tasks}


def given_of_row(row: Mapping[str, Any]) -> dict[GivenTask, np.ndarray]:
    """What a row stores, by task. Raises ValueError where it is not of the size of the clip's latent."""
    found = {task: row[column] for task, column in GIVEN_COLUMNS.items() if column in row}
    for task, latent in found.items():
        if latent.shape != row["latent"].shape:
            raise ValueError(f"what is given for {task} is {latent.shape}, and the latent {row['latent'].shape}")
    return found
