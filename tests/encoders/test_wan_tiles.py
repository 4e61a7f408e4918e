"""Tiles and windows give what the whole gives, and memory does not grow with length or size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from megavideo.encoders.tiles.wan import WanTiles
from megavideo.errors import ConfigError
from tests.encoders.tile_cases import noise, peak_bytes, psnr

PLAIN = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
SHORTCUTS = {
    "base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [True, True],
    "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 8,
}  # fmt: skip


def make(config: dict[str, Any]) -> Any:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    model = AutoencoderKLWan(**config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(1.5)  # untrained weights hardly look at their neighbours
    return model


@pytest.mark.parametrize("config", [PLAIN, SHORTCUTS], ids=["plain", "shortcuts"])
def test_tiles_and_windows_equal_the_whole(config: dict[str, Any]) -> None:
    model = make(config)
    video = noise(9, 128, 24)
    latent = model.encode(video).latent_dist.mode()
    restored = model.decode(latent).sample
    for tile, windows in ((None, (5, 4)), (3, (9,)), (4, (1, 4, 4))):
        tiles = WanTiles(model, tile)
        moments = torch.cat(list(tiles.encode(video.split(windows, dim=2))), 2)
        pictures = torch.cat(list(tiles.decode(latent.split([1, 2], dim=2))), 2).clamp(-1, 1)
        assert moments.shape[3:] == (16, 3)
        assert psnr(moments.chunk(2, dim=1)[0], latent) > 100
        assert psnr(pictures, restored) > 100


def test_margins_are_as_wide_as_they_must_be() -> None:
    model = make(SHORTCUTS)
    video = noise(1, 160, 32)
    latent = model.encode(video).latent_dist.mode()
    narrow = WanTiles(model, 4)
    narrow._encode_margin -= 2
    assert psnr(next(narrow.encode([video])).chunk(2, dim=1)[0], latent) < 80


def test_gradients_pass() -> None:
    model = make(SHORTCUTS).requires_grad_(True)
    tiles = WanTiles(model, None)
    moments = torch.cat(list(tiles.encode([noise(5, 32, 32)])), 2)
    torch.cat(list(tiles.decode([moments.chunk(2, dim=1)[0]])), 2).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_attention_at_full_resolution_cannot_be_tiled() -> None:
    model = make(PLAIN | {"attn_scales": [1.0]})
    WanTiles(model, None)
    with pytest.raises(ConfigError, match="cannot be tiled"):
        WanTiles(model, 4)


def windows(count: int, side: int) -> Iterator[torch.Tensor]:
    yield noise(5, side, side)
    for _ in range(count - 1):
        yield noise(4, side, side)


def _through(windows: Iterator[torch.Tensor]) -> None:
    for _ in windows:
        pass


def test_memory_does_not_grow_with_length() -> None:
    tiles = WanTiles(make(SHORTCUTS), None)
    encode = [peak_bytes(lambda n=n: _through(tiles.encode(windows(n, 64)))) for n in (3, 6, 12)]
    latents = torch.zeros(1, 4, 12, 8, 8)
    decode = [peak_bytes(lambda n=n: _through(tiles.decode(latents[:, :, :n].split(1, dim=2)))) for n in (3, 6, 12)]
    for peaks in (encode, decode):
        assert max(peaks) < 1.02 * min(peaks), peaks


def test_tiles_save_memory() -> None:
    model = make(SHORTCUTS)
    latent = torch.zeros(1, 4, 1, 40, 40)
    whole, tiled = (peak_bytes(lambda t=t: _through(WanTiles(model, t).decode([latent]))) for t in (None, 4))
    assert tiled < 0.7 * whole, (tiled, whole)
