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


def given_channels(clean: torch.Tensor, given: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """The further input channels [N, G] of clean tokens [N, P] of which some are `given` [N].

    Of each latent cell first the mask, one where it is given, once for each frame that a latent frame holds; then its
    clean latents, zero where it is not (the order of diffusers' WanImageToVideoPipeline).
    """
    cells = torch.where(given[:, None], clean, 0.0).unflatten(-1, (-1, config.latent_channels))
    mask = given[:, None, None].to(clean.dtype).expand(*cells.shape[:2], config.given_channels - config.latent_channels)
    return torch.cat([mask, cells], dim=-1).flatten(1)


def drops_text(text_dropout: float, key: SampleKey) -> bool:
    """Whether this visit trains without its caption, for classifier-free guidance (Ho and Salimans 2022)."""
    return key.uniform("text_dropout") < text_dropout
