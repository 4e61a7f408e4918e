"""Where a token stands in its own clip, relative to its length, height and width, as numbers for a linear layer."""

from __future__ import annotations

import math

import torch

_OCTAVES = 4
PLACE_FEATURES = 3 * 2 * _OCTAVES


def place_features(place: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Sines and cosines of the place (t, y, x) in 0..1 at four octaves from half a period: [N, 3] -> [N, 24]."""
    octaves = math.pi * 2.0 ** torch.arange(_OCTAVES, device=place.device)
    angle = (place[:, :, None] * octaves).flatten(1)
    return torch.cat([angle.sin(), angle.cos()], dim=1).to(dtype)
