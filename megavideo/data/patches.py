"""Latents to tokens and back. A token lists its patch as (pt, ph, pw, C); tokens run over t, then y, then x."""

from __future__ import annotations

import torch

from megavideo.types import Grid


def token_grid(latent: Grid, patch: tuple[int, int, int]) -> Grid:
    """Grid of tokens over a latent whose sizes the patch divides."""
    return Grid(latent.t // patch[0], latent.h // patch[1], latent.w // patch[2])


def patchify(latent: torch.Tensor, patch: tuple[int, int, int]) -> torch.Tensor:
    """[C, T, H, W] -> [N, P]."""
    channels, frames, height, width = latent.shape
    pt, ph, pw = patch
    x = latent.reshape(channels, frames // pt, pt, height // ph, ph, width // pw, pw)
    return x.permute(1, 3, 5, 2, 4, 6, 0).reshape(-1, pt * ph * pw * channels)


def unpatchify(tokens: torch.Tensor, grid: Grid, patch: tuple[int, int, int]) -> torch.Tensor:
    """[N, P] -> [C, T, H, W]."""
    pt, ph, pw = patch
    x = tokens.reshape(grid.t, grid.h, grid.w, pt, ph, pw, -1)
    return x.permute(6, 0, 3, 1, 4, 2, 5).reshape(-1, grid.t * pt, grid.h * ph, grid.w * pw)
