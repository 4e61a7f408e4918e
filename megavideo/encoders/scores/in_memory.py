"""Batches of frames that do not fit into memory, as an error of the setting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megavideo.errors import ConfigError


@contextmanager
def in_memory() -> Iterator[None]:
    """Turn what a full GPU raises in the block into a ConfigError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        rule = "so many frames at a time do not fit into the GPU's memory"
        raise ConfigError("scores.batch", None, rule, "take a smaller scores.batch") from error
