"""Each class of diffusers that can be loaded encodes and decodes as it does by itself, standardised by channel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megavideo.config.load import load
from megavideo.config.schema.prepare import AutoencoderConfig, EncodeRun
from megavideo.encoders.families import FAMILIES, load_weights
from megavideo.encoders.folder import autoencoder_ratios, build_autoencoder, load_encoders, save_encoders
from megavideo.encoders.text.bytes_text import BytesTextEncoder
from megavideo.encoders.video.loaded import LoadedAutoencoder, build_loaded, open_loaded
from megavideo.errors import ConfigError
from tests.encoders.tile_cases import psnr
from tests.encoders.tiny_models import make_family

RATIOS = {"hunyuan_video": (4, 8), "cogvideox": (4, 8), "ltx": (8, 32)}


def clip(seed: int, frames: int, side: int = 64) -> torch.Tensor:
    return torch.rand(3, frames, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("kind", RATIOS)
def test_family(kind: str, tmp_path: Path) -> None:
    time_ratio, space_ratio = RATIOS[kind]
    frames = 1 + time_ratio
    cfg = AutoencoderConfig(kind=kind, path=str(make_family(tmp_path / "weights", kind)))  # type: ignore[arg-type]
    assert autoencoder_ratios(cfg) == RATIOS[kind]

    def fit(count: int) -> Iterator[torch.Tensor]:
        return (clip(seed, frames) for seed in range(4))

    autoencoder = build_autoencoder(cfg, fit)
    latents = torch.stack([autoencoder.encode(video) for video in fit(4)])
    assert latents.shape == (4, 4, 2, 64 // space_ratio, 64 // space_ratio)
    assert latents.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-3
    assert (latents.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 0.1
    assert autoencoder.encode(clip(0, 1)).shape == (4, 1, 64 // space_ratio, 64 // space_ratio)
    # As the class itself decodes, once the standardising is undone.
    assert isinstance(autoencoder, LoadedAutoencoder) and autoencoder.statistics is not None
    reference = load_weights("path", open_loaded(cfg.path), FAMILIES[kind], torch.float32).eval()
    statistics = autoencoder.statistics
    raw = latents[0] * statistics.std.view(-1, 1, 1, 1) + statistics.mean.view(-1, 1, 1, 1)
    with torch.no_grad():
        # CogVideoX gives four frames for the first of an even number of latent ones, and the others one.
        expected = reference.decode(raw[None]).sample[0, :, -frames:].clamp(-1, 1)
    assert expected.shape == (3, frames, 64, 64)
    assert torch.allclose(autoencoder.decode(latents[0]), expected, atol=1e-5)
    save_encoders(tmp_path / "kept", autoencoder, BytesTextEncoder(8, 4))
    kept = load_encoders(tmp_path / "kept").autoencoder
    assert torch.equal(kept.encode(clip(1, frames)), latents[1])


def test_ltx_brings_its_statistics(tmp_path: Path) -> None:
    folder = make_family(tmp_path, "ltx")
    model = load_weights("path", open_loaded(str(folder)), FAMILIES["ltx"], torch.float32)
    model.latents_mean.copy_(torch.arange(4.0))
    model.latents_std.fill_(2.0)
    model.save_pretrained(folder)
    autoencoder = build_loaded("ltx", str(folder), "fp32", lambda count: pytest.fail("nothing is to be measured"))
    assert autoencoder.statistics is not None
    assert autoencoder.statistics.mean.tolist() == [0, 1, 2, 3] and autoencoder.statistics.std.tolist() == [2] * 4


@pytest.mark.parametrize("kind", RATIOS)
def test_a_tile_changes_nothing(kind: str, tmp_path: Path) -> None:
    """Not even of a clip of more than 16 frames, which HunyuanVideo's class by itself would blend from windows."""
    folder = str(make_family(tmp_path, kind))
    video = clip(0, 25)
    whole = build_loaded(kind, folder, "fp32", lambda count: [video])
    tiled = LoadedAutoencoder(kind, open_loaded(folder), "fp32", 32, whole.statistics)
    latent = whole.encode(video)
    found = tiled.encode(video)
    assert not torch.equal(found, latent), "it was not worked on in tiles"
    assert psnr(found, latent) > 100
    assert psnr(tiled.decode(latent), whole.decode(latent)) > 100


def test_other_kinds_are_named(tmp_path: Path) -> None:
    folder = make_family(tmp_path, "cogvideox")
    with pytest.raises(ConfigError, match=r"AutoencoderKLCogVideoX.*autoencoder=cogvideox"):
        build_loaded("wan", str(folder), "fp32", lambda count: [])
    with pytest.raises(ConfigError, match=r"autoencoder\.tile.*no effect with autoencoder\.kind=pca"):
        load(EncodeRun, "encode", ["src=a", "out=b", "autoencoder.tile=64"])
    with pytest.raises(ConfigError, match=r"autoencoder\.tile.*must divide by 8"):
        build_loaded("cogvideox", str(folder), "fp32", lambda count: [], tile=60)
    autoencoder = build_loaded("cogvideox", str(folder), "fp32", lambda count: [clip(0, 5)])
    with pytest.raises(ConfigError, match="cache of features"):
        list(autoencoder.encode_windows([clip(0, 5)]))
