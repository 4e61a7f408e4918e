"""How much goes on in a clip, and how much further towards noise it is trained for that.

The measure looks at the sample's own latents alone, so that noise stays a function of (seed, sample, visit). It is this
project's own and from no paper.

Shape legend: t, h, w of a token grid, P patch width.
"""

from __future__ import annotations

import math

import torch

from megavideo.types import Grid

# That of a middling clip: of 16 windows of real clips in latents of the built-in autoencoder the median was 0.58, the
# range 0.25 to 1.05. White noise of unit variance has the root of 2, and a flat clip that stands still 0.
REFERENCE_GRADIENT = 0.6
# However flat or busy a clip is, its shift moves by no more than these factors.
LEAST_FACTOR, MOST_FACTOR = 0.25, 4.0


def latent_gradient(tokens: torch.Tensor, grid: Grid) -> float:
    """Root mean square difference between neighbouring clean tokens [t * h * w, P], in latent units.

    Neighbours along y and x make the spatial part and along t the temporal one; the mean of the two mean squares is
    taken, or the one that there is. A single token has none, and counts as the reference.
    """
    cells = tokens.double().view(grid.t, grid.h, grid.w, -1)
    along_t, along_y, along_x = (cells.diff(dim=dim).square().flatten() for dim in (0, 1, 2))
    parts = [part.mean() for part in (along_t, torch.cat([along_y, along_x])) if part.numel()]
    return float(torch.stack(parts).mean().sqrt()) if parts else REFERENCE_GRADIENT


def content_shift(exponent: float, gradient: float) -> float:
    """(gradient / reference) ** exponent: the factor on a clip's timestep shift, from LEAST_FACTOR to MOST_FACTOR."""
    if math.isnan(gradient):  # of a spoiled sample, whose step will be skipped
        return 1.0
    return min(max((gradient / REFERENCE_GRADIENT) ** exponent, LEAST_FACTOR), MOST_FACTOR)
