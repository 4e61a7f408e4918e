"""Layer by layer and tile by tile gives what the whole gives, without seams, and the memory is a tile's."""

from __future__ import annotations

from copy import deepcopy
from functools import cache, partial
from typing import Any

import pytest
import torch

from megavideo.encoders.families import FAMILIES, Family, decode_raw
from megavideo.encoders.tiles import causal_attention, hunyuan_video, layerwise
from megavideo.encoders.tiles.activation import Activation
from megavideo.encoders.tiles.layer import LayerRunner
from megavideo.encoders.tiles.layerwise import LayerwiseAutoencoder
from megavideo.errors import ConfigError
from tests.encoders.tile_cases import noise, peak_bytes, psnr

GROUPS = {"block_out_channels": (4, 4, 8, 8), "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 4}
LTX = {
    "latent_channels": 4, "block_out_channels": (4, 4, 8, 8), "decoder_block_out_channels": (4, 4, 8, 8),
    "layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5,
}  # fmt: skip
# With the decoder of LTX 0.9.1, which takes a noise level and adds noise, and the encoder of 0.9.5.
LTX_LATER = LTX | {
    "block_out_channels": (4, 8, 8, 16, 16), "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "spatio_temporal_scaling": (True,) * 4,
    "decoder_block_out_channels": (8, 16, 32), "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_layers_per_block": (1,) * 4, "decoder_inject_noise": (True, True, False, True),
    "upsample_residual": (True,) * 3, "upsample_factor": (2,) * 3, "timestep_conditioning": True,
    "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "hunyuan_video": ("hunyuan_video", GROUPS),
    "cogvideox": ("cogvideox", GROUPS),
    "ltx": ("ltx", LTX),
    "ltx_centred": ("ltx", LTX | {"encoder_causal": False, "decoder_causal": True}),
    "ltx_later": ("ltx", LTX_LATER),
}
TILE = 32


@cache
def make(name: str) -> tuple[Any, Family]:
    import diffusers

    kind, config = MODELS[name]
    torch.manual_seed(0)
    model = getattr(diffusers, FAMILIES[kind].class_name)(**config).eval().requires_grad_(False)
    for key, parameter in model.named_parameters():
        parameter.mul_(1.5)  # untrained weights hardly look at their neighbours
        if "norm" in key and key.endswith("bias"):
            parameter.normal_()
        if "per_channel_scale" in key:
            parameter.fill_(0.3)
    model.use_framewise_encoding = model.use_framewise_decoding = False
    return model, FAMILIES[kind]


def both_ways(name: str, frames: int, height: int, width: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Moments and pictures, each in tiles and as a whole."""
    model, family = make(name)
    tiles = LayerwiseAutoencoder(family, model, TILE)
    posterior = model.encode(noise(frames, height, width)).latent_dist
    torch.manual_seed(2)
    pictures = decode_raw(model, family, posterior.mode())
    torch.manual_seed(2)
    tiled = tiles.decode(posterior.mode())
    return [(tiles.encode(noise(frames, height, width)), posterior.parameters), (tiled, pictures)]


@pytest.mark.parametrize("name", MODELS)
def test_tiles_equal_the_whole(name: str) -> None:
    time_ratio, space_ratio = make(name)[1].ratios(make(name)[0].config)
    many = 2 if time_ratio == 8 else 4  # groups that fill neither the last tile in time nor CogVideoX's first batch
    for groups, height, width in ((0, 3, 2), (1, 2, 3), (many, 3, 1)):
        scale = space_ratio * (64 // space_ratio)
        shape = (1 + groups * time_ratio, height * scale // 2, width * scale // 2)
        for found, expected in both_ways(name, *shape):
            assert found.shape == expected.shape
            assert psnr(found, expected) > 100, (shape, psnr(found, expected))


@pytest.mark.parametrize(("name", "least"), [("hunyuan_video", 45), ("ltx", 100)])
def test_bf16(name: str, least: float) -> None:
    """Exact but for values of HunyuanVideo's norms that lie between two of bf16: one of them is enough for 48 dB."""
    model, family = make(name)
    half = deepcopy(model).to(torch.bfloat16)
    tiles = LayerwiseAutoencoder(family, half, TILE)
    video = noise(9, 64, 64)
    moments = half.encode(video.bfloat16()).latent_dist.parameters
    latent = moments.chunk(2, dim=1)[0]
    assert psnr(tiles.encode(video).float(), moments.float()) > least
    assert psnr(tiles.decode(latent).float(), decode_raw(half, family, latent).float()) > least


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_middle_attention_is_the_class_own(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 number for number, but for the norm: rounded at other places, a fifth of all would differ."""
    from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import prepare_causal_attention_mask

    monkeypatch.setattr(causal_attention, "_QUERIES", 48)
    model = deepcopy(make("hunyuan_video")[0]).to(dtype)
    attention = model.decoder.mid_block.attentions[0]
    x = torch.randn(1, 8, 3, 8, 8, generator=torch.Generator().manual_seed(3)).to(dtype)
    mask = prepare_causal_attention_mask(3, 64, dtype, x.device, 1)
    expected = attention(x.flatten(2).transpose(1, 2), attention_mask=mask).transpose(1, 2).reshape(x.shape)
    given = Activation(x)
    given.moments.add(x)
    found = hunyuan_video._attention(LayerRunner(model, (9, 64, 64), TILE, 16), attention, given).values
    assert psnr(found.float(), expected.float()) > 90
    assert dtype is torch.float32 or (found != expected).float().mean() < 0.01


@pytest.mark.parametrize("name", ["hunyuan_video", "cogvideox", "ltx"])
def test_no_seams(name: str) -> None:
    tiled, whole = both_ways(name, 9, 64, 64)[1]
    error = (tiled - whole).abs() / (whole.max() - whole.min())
    beside = torch.tensor([TILE - 1, TILE])
    elsewhere = torch.tensor([place for place in range(64) if place not in beside])
    assert error.max() < 1e-5  # rounding of float32, and much less than a grey level
    for dim in (3, 4):
        assert error.index_select(dim, beside).max() <= 2 * error.index_select(dim, elsewhere).max()


@pytest.mark.parametrize("name", ["hunyuan_video", "cogvideox", "ltx"])
def test_plain_cuts_fall_short(name: str) -> None:
    """These weights look at their neighbours and at statistics of the whole, so that the tests above say something."""
    model, family = make(name)
    latent = model.encode(noise(9, 64, 64)).latent_dist.mode()
    whole = decode_raw(model, family, latent)
    cut = torch.cat([decode_raw(model, family, half) for half in latent.chunk(2, dim=4)], 4)
    assert psnr(cut, whole) < 40


@pytest.mark.parametrize("name", ["hunyuan_video", "cogvideox", "ltx"])
def test_memory_does_not_grow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not in mapped files is hardly more for twice the frames, or for 2.25 times the area.

    Hardly, because in so small a clip no tile has all its neighbours.
    """
    monkeypatch.setattr(causal_attention, "_QUERIES", 16)
    monkeypatch.setattr(layerwise, "TILE_FRAMES", 4)
    model, family = make(name)
    tiles = LayerwiseAutoencoder(family, model, 16, memory_bytes=0)
    time_ratio, space_ratio = family.ratios(model.config)
    encode, decode = [], []
    for length, side in ((9, 64), (17, 64), (9, 96)):
        video = noise(length, side, side)
        latent = torch.zeros(1, 4, 1 + length // time_ratio, side // space_ratio, side // space_ratio)
        encode.append(peak_bytes(partial(tiles.encode, video), given=video))
        decode.append(peak_bytes(partial(tiles.decode, latent), given=latent))
    for peaks in (encode, decode):
        assert max(peaks) < 1.25 * min(peaks), (encode, decode)


def test_joined_frames_at_the_start_are_refused() -> None:
    from diffusers import AutoencoderKLLTXVideo

    model = AutoencoderKLLTXVideo(**LTX | {"patch_size_t": 2})
    with pytest.raises(ConfigError, match=r"autoencoder\.tile.*patches of several frames"):
        LayerwiseAutoencoder(FAMILIES["ltx"], model, TILE)
