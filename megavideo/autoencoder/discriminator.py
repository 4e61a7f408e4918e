"""A small 3D PatchGAN (Isola et al. 2017, with convolutions over time) and the hinge loss (Lim and Ye 2017).

Shape legend: B batch, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

_GROUPS = 4
_SLOPE = 0.2


class PatchDiscriminator(nn.Module):
    """Scores for patches of a video; a single frame is a video of one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(3, width, (3, 4, 4), (1, 2, 2), 1),
            nn.LeakyReLU(_SLOPE),
            nn.Conv3d(width, 2 * width, (3, 4, 4), 2, 1),
            nn.GroupNorm(_GROUPS, 2 * width),
            nn.LeakyReLU(_SLOPE),
            nn.Conv3d(2 * width, 4 * width, (3, 4, 4), 2, 1),
            nn.GroupNorm(_GROUPS, 4 * width),
            nn.LeakyReLU(_SLOPE),
            nn.Conv3d(4 * width, 1, 3, 1, 1),
        )

    def forward(self, videos: list[torch.Tensor]) -> list[torch.Tensor]:
        """Scores [B, 1, t, h, w] of each batch [B, 3, T, H, W]; positive means real."""
        return [self.layers(video) for video in videos]


def generator_hinge(fake: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the autoencoder minimises: the mean over all samples of minus their mean score."""
    return _sample_mean([-score for score in fake])


def discriminator_hinge(real: Sequence[torch.Tensor], fake: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the discriminator minimises: real scores below 1 and fake ones above -1; 1 where it knows nothing."""
    missed = [0.5 * (F.relu(1.0 - a) + F.relu(1.0 + b)) for a, b in zip(real, fake, strict=True)]
    return _sample_mean(missed)


def _sample_mean(scores: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([score.float().flatten(1).mean(1) for score in scores]).mean()
