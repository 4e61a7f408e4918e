"""The video from which models with further input channels learn what they are given, as Wan's are told it."""

from __future__ import annotations

import torch

from megavideo.config.schema.prepare import GivenTask


def given_video(video: torch.Tensor, task: GivenTask) -> torch.Tensor:
    """A video [3, T, H, W] in -1..1 of which the given frames are left, and the others are grey, which is zero.

    `image_to_video` gives the first frame, `interpolation` the first and the last (diffusers'
    `WanImageToVideoPipeline.prepare_latents`).
    """
    given = torch.zeros_like(video)
    given[:, 0] = video[:, 0]
    if task == "interpolation":
        given[:, -1] = video[:, -1]
    return given
