"""Conditioning tasks as masks over latent tokens: a token under the mask is given clean and is not in the loss."""

from __future__ import annotations

import dataclasses

import torch

from megavideo.config.schema.diffusion import ConditionConfig
from megavideo.config.schema.model import ModelConfig
from megavideo.diffusion.randomness import SampleKey
from megavideo.types import Grid


def draw_task(config: ConditionConfig, key: SampleKey, grid: Grid) -> str:
    """Name of the task of one visit of a sample; one-frame samples have only `text` and `inpainting`."""
    weights = {field.name: float(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if grid.t == 1:
        weights = {name: weight for name, weight in weights.items() if name in ("text", "inpainting")}
    total = sum(weights.values())
    threshold = key.uniform("task") * total
    for name, weight in weights.items():
        threshold -= weight
        if weight > 0 and threshold < 0:
            return name
    return "text"


def condition_mask(task: str, key: SampleKey, grid: Grid) -> torch.Tensor:
    """Which tokens [t * h * w] are given.

    `image_to_video`: the first latent frame; `extension`: a first run of frames, up to half; `interpolation`: the
    first and last frame; `inpainting`: all but a box of half each side that stays over time.
    """
    mask = torch.zeros(grid.t, grid.h, grid.w, dtype=torch.bool)
    if task == "image_to_video":
        mask[0] = True
    elif task == "extension":
        mask[: 1 + int(key.uniform("extension") * (grid.t // 2))] = True
    elif task == "interpolation":
        mask[0] = mask[-1] = True
    elif task == "inpainting":
        mask[:] = True
        height, width = (grid.h + 1) // 2, (grid.w + 1) // 2
        top = int(key.uniform("inpainting/y") * (grid.h - height + 1))
        left = int(key.uniform("inpainting/x") * (grid.w - width + 1))
        mask[:, top : top + height, left : left + width] = False
    if bool(mask.all()):  # a clip of two latent frames cannot be interpolated: nothing would be left to learn
        mask[grid.t // 2 :] = False
    return mask.flatten()


def draw_mask(config: ConditionConfig, key: SampleKey, grid: Grid) -> torch.Tensor:
    """Mask [t * h * w] of the task drawn for one visit of a sample."""
    return condition_mask(draw_task(config, key, grid), key, grid)


def given_channels(told: torch.Tensor, task: str, grid: Grid, config: ModelConfig) -> torch.Tensor:
    """The further input channels [N, G] of a sample of a `task`, whose first frame, or first and last, is given.

    `told` [N, P] are tokens of a video with these frames and grey ones in place of the others. Of each latent cell
    first comes the mask, a channel for each frame that a latent frame holds: one in all of the first latent frame,
    and for `interpolation` in the last channel of the last one; then the cell's latents (the order of diffusers'
    WanImageToVideoPipeline).
    """
    cells = told.unflatten(-1, (-1, config.latent_channels))
    mask = told.new_zeros(grid.t, grid.h * grid.w, config.patch[0], cells.shape[1] // config.patch[0],
                          config.given_channels - config.latent_channels)  # fmt: skip
    mask[0, :, 0] = 1.0
    if task == "interpolation":
        mask[-1, :, -1, :, -1] = 1.0
    return torch.cat([mask.view(*cells.shape[:2], -1), cells], dim=-1).flatten(1)


def drops_text(text_dropout: float, key: SampleKey) -> bool:
    """Whether this visit trains without its caption, for classifier-free guidance (Ho and Salimans 2022)."""
    return key.uniform("text_dropout") < text_dropout
