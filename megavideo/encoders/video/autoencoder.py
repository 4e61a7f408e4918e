"""What every video autoencoder offers to the rest of megavideo."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import torch

# Gives, for a number of clips, so many videos [3, T, H, W] in -1..1 of the dataset: what an autoencoder is fitted to.
FitVideos = Callable[[int], Iterable[torch.Tensor]]


class VideoAutoencoder(Protocol):
    """A causal video autoencoder whose latents have zero mean and unit variance in every channel.

    The first frame stands alone in time, and each further latent frame holds `time_ratio` frames.
    """

    latent_channels: int
    time_ratio: int
    space_ratio: int

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Latent [C, 1 + (T-1)/time_ratio, H/space_ratio, W/space_ratio] of a video [3, T, H, W] float32 in -1..1."""
        ...

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Video [3, T, H, W] float32 in -1..1 of a latent as `encode` gives."""
        ...

    def decode_for_loss(self, latent: torch.Tensor) -> torch.Tensor:
        """`decode` with gradients, on the autoencoder's device; a pixel that was clamped would have none."""
        ...

    def save(self, folder: Path) -> None:
        """Write all that `load_encoders` needs to `folder`."""
        ...


def check_video(video: torch.Tensor, time_ratio: int, space_ratio: int) -> None:
    """Raise ValueError where a video's shape is not one that a causal autoencoder of these ratios takes."""
    if video.ndim != 4 or video.shape[0] != 3:
        raise ValueError(f"a video is [3, T, H, W], and this is {tuple(video.shape)}")
    _, frames, height, width = video.shape
    if (frames - 1) % time_ratio or height % space_ratio or width % space_ratio:
        raise ValueError(
            f"{frames} frames of {height}x{width}: frames must be 1 + {time_ratio}n, sides must divide by {space_ratio}"
        )
