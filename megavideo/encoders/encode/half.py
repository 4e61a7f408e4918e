"""Tensors as they are stored: halves of numpy."""

from __future__ import annotations

import numpy as np
import torch


def to_half(values: torch.Tensor) -> np.ndarray:
    """The same values in float16; what does not fit becomes infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values.float().numpy().astype(np.float16))
