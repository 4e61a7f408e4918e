"""Tensors as they are stored: halves of numpy."""

from __future__ import annotations

import numpy as np
import torch


def to_half(values: torch.Tensor) -> np.ndarray:
    """The same values in float16; what does not fit becomes infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values.float().numpy().astype(np.float16))


def as_stored(values: torch.Tensor) -> torch.Tensor:
    """Float32 values as they come back from a dataset, rounded to float16: training saw no others."""
    return values.to(torch.float16).float()
