"""Latents of given frames, stored beside those of a clip: of a video whose other frames are grey.

Models with further input channels are told them (`model.given_channels`). They do not follow from the clip's own
latent: through a causal autoencoder the first frame reaches into the latent frames after it. Models with
`model.image_dim` are told the embedding of the first frame besides, which is stored in a column of its own.
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
IMAGE_COLUMN = "image_embedding"  # [I, E] of the first frame


def given_columns(tasks: Sequence[GivenTask], *, with_image: bool) -> dict[str, str]:
    """The columns of a dataset that stores these tasks, and embeddings of first frames, with their encodings."""
    return {GIVEN_COLUMNS[task]: GIVEN_ENCODING for task in tasks} | (
        {IMAGE_COLUMN: GIVEN_ENCODING} if with_image else {}
    )


def image_of_row(row: Mapping[str, Any]) -> np.ndarray | None:
    """The embedding [I, E] that a row stores, if any. Raises ValueError where it is no matrix."""
    found: np.ndarray | None = row.get(IMAGE_COLUMN)
    if found is not None and found.ndim != 2:
        raise ValueError(f"its image embedding is {found.shape}, and a matrix is due")
    return found


def given_of_row(row: Mapping[str, Any]) -> dict[GivenTask, np.ndarray]:
    """What a row stores, by task. Raises ValueError where it is not of the size of the clip's latent."""
    found = {task: row[column] for task, column in GIVEN_COLUMNS.items() if column in row}
    for task, latent in found.items():
        if latent.shape != row["latent"].shape:
            raise ValueError(f"what is given for {task} is {latent.shape}, and the latent {row['latent'].shape}")
    return found
