from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megavideo.config.schema.prepare import AutoencoderConfig, TextEncoderConfig
from megavideo.encoders.folder import build_autoencoder, build_text_encoder, load_encoders, save_encoders
from megavideo.encoders.pretrained import Stored, open_pretrained, reopen_pretrained
from megavideo.encoders.text.transformers_text import TransformersTextEncoder, build_transformers_text
from megavideo.encoders.video.loaded import LoadedAutoencoder, build_loaded
from megavideo.errors import ConfigError, DataError
from tests.encoders.tiny_models import make_text, make_wan


def clip(seed: int, frames: int = 5) -> torch.Tensor:
    return torch.rand(3, frames, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def wan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_text(tmp_path_factory.mktemp("text"))


def test_wan_is_calibrated_where_its_statistics_do_not_fit(wan_folder: Path) -> None:
    # A folder of eight channels carries the class's default statistics of sixteen.
    assert len(json.loads((wan_folder / "config.json").read_text())["latents_mean"]) == 16
    autoencoder = build_loaded("wan", str(wan_folder), "fp32", lambda count: (clip(seed) for seed in range(6)))
    latents = torch.stack([autoencoder.encode(clip(seed)) for seed in range(6)])
    assert latents.shape == (6, 8, 2, 4, 4)
    assert latents.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-3
    assert (latents.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 1e-2
    assert torch.equal(autoencoder.encode(clip(1)), autoencoder.encode(clip(1)))
    assert autoencoder.encode(clip(1, frames=1)).shape == (8, 1, 4, 4)
    decoded = autoencoder.decode(latents[0])
    assert decoded.shape == (3, 5, 32, 32) and decoded.abs().max() <= 1.0


def test_wan_agrees_with_diffusers(tmp_path: Path) -> None:
    from diffusers import AutoencoderKLWan

    mean, std = [0.1 * i for i in range(8)], [1.0 + 0.1 * i for i in range(8)]
    folder = make_wan(tmp_path, latents_mean=mean, latents_std=std)
    autoencoder = build_loaded("wan", str(folder), "fp32", lambda count: pytest.fail("no clip is needed"))
    reference = AutoencoderKLWan.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        raw = reference.encode(clip(0)[None]).latent_dist.mode()[0]
        expected = (raw - torch.tensor(mean).view(-1, 1, 1, 1)) / torch.tensor(std).view(-1, 1, 1, 1)
        restored = reference.decode(raw[None]).sample[0].clamp(-1, 1)
    latent = autoencoder.encode(clip(0))
    assert torch.allclose(latent, expected, atol=1e-5)
    assert torch.allclose(autoencoder.decode(latent), restored, atol=1e-4)
    half = build_loaded("wan", str(folder), "bf16", lambda count: ())
    assert half.encode(clip(0)).dtype == torch.float32
    assert 0 < (half.encode(clip(0)) - latent).abs().max() < 0.1


def test_pipeline_folders_are_found(wan_folder: Path, text_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(wan_folder, tmp_path / "vae")
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "tokenizer").mkdir()
    for path in text_folder.iterdir():
        part = "text_encoder" if path.name in ("config.json", "model.safetensors") else "tokenizer"
        shutil.copy(path, tmp_path / part / path.name)
    assert build_loaded("wan", str(tmp_path), "fp32", lambda count: [clip(0)]).latent_channels == 8
    assert build_transformers_text(str(tmp_path), 16).dim == 32


def _folder_of(place: Path) -> Path:
    """A folder with one file of two tensors, of 2 and 6 MiB."""
    place.mkdir()
    (place / "config.json").write_text("{}")
    save_file({"early": torch.arange(2.0**19), "late": torch.arange(1.5 * 2**20)}, place / "model.safetensors")
    return place


def _fingerprint_of(folder: Path) -> str:
    return open_pretrained("path", str(folder), "vae").fingerprint


def test_a_fine_tune_with_frozen_early_tensors_is_another_model(tmp_path: Path) -> None:
    folder = _folder_of(tmp_path / "model")
    before = _fingerprint_of(folder)
    assert _fingerprint_of(folder) == before
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["late"] += 1e-3 * tensors["late"].abs().max()
    save_file(tensors, path)
    assert _fingerprint_of(folder) != before
    before = _fingerprint_of(folder)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    assert _fingerprint_of(folder) != before


def test_an_older_dataset_finds_its_weights_again(tmp_path: Path) -> None:
    folder = _folder_of(tmp_path / "model")
    path = folder / "model.safetensors"
    digest = hashlib.sha256(b"{}" + f"model.safetensors\0{path.stat().st_size}\0".encode())
    digest.update(path.read_bytes()[: 1 << 20])
    stored = Stored(str(folder), digest.hexdigest())
    assert reopen_pretrained(tmp_path / "wan.json", stored, "vae").path == folder
    with path.open("r+b") as file:
        file.seek((1 << 20) - 1)
        file.write(b"\xff")
    with pytest.raises(DataError, match="other weights"):
        reopen_pretrained(tmp_path / "wan.json", stored, "vae")


@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_transformers_text(kind: str, tmp_path: Path) -> None:
    encoder = build_transformers_text(str(make_text(tmp_path, kind)), 5)
    captions = ["a red square moves right", "blue circle", ""]
    texts = encoder.encode(captions)
    assert [tuple(text.shape) for text in texts] == [(5, 32), (3, 32), (1, 32)]
    assert [encoder.count_tokens(caption) for caption in captions] == [6, 3, 1]
    # Padding in a batch changes nothing.
    for caption, text in zip(captions, texts, strict=True):
        assert torch.allclose(encoder.encode([caption])[0], text, atol=1e-5)


def test_transformers_without_end_token(tmp_path: Path) -> None:
    encoder = build_transformers_text(str(make_text(tmp_path, with_end=False)), 5)
    assert encoder.encode([""])[0].shape == (1, 32)


def test_save_and_load(wan_folder: Path, text_folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(wan_folder, weights / "vae")
    shutil.copytree(text_folder, weights / "text")
    autoencoder = build_loaded("wan", str(weights / "vae"), "fp32", lambda count: [clip(0), clip(1)])
    text_encoder = build_transformers_text(str(weights / "text"), 16)
    save_encoders(tmp_path / "kept", autoencoder, text_encoder)
    assert not [path for path in (tmp_path / "kept").iterdir() if path.suffix != ".json"]
    loaded = load_encoders(tmp_path / "kept")
    assert isinstance(loaded.autoencoder, LoadedAutoencoder) and isinstance(
        loaded.text_encoder, TransformersTextEncoder
    )
    assert torch.equal(loaded.autoencoder.encode(clip(2)), autoencoder.encode(clip(2)))
    assert torch.equal(loaded.text_encoder.encode(["red"])[0], text_encoder.encode(["red"])[0])
    make_wan(weights / "vae", base_dim=8)
    with pytest.raises(DataError, match="other weights"):
        load_encoders(tmp_path / "kept")
    shutil.rmtree(weights / "vae")
    with pytest.raises(DataError, match=rf'link to it, at {weights}/vae; .*"path" in the run.*wan\.json'):
        load_encoders(tmp_path / "kept")
    (weights / "vae").symlink_to(wan_folder)  # as the remedy says
    assert load_encoders(tmp_path / "kept").autoencoder.latent_channels == autoencoder.latent_channels
    description = tmp_path / "kept" / "wan.json"
    description.write_text(description.read_text().replace('"fp32"', '"fp16"'))
    with pytest.raises(DataError, match="damaged"):
        load_encoders(tmp_path / "kept")
    (tmp_path / "kept" / "encoders.json").write_text('{"autoencoder": "none"}')
    with pytest.raises(DataError, match="missing or damaged"):
        load_encoders(tmp_path / "kept")


def test_unusable_folders(wan_folder: Path, text_folder: Path, tmp_path: Path) -> None:
    def wan(path: Path | None) -> None:
        build_autoencoder(AutoencoderConfig(kind="wan", path=path and str(path)), lambda count: [clip(0)])

    def text(path: Path | None) -> None:
        build_text_encoder(TextEncoderConfig(kind="transformers", path=path and str(path)))

    (tmp_path / "empty").mkdir()
    bare = tmp_path / "bare"
    shutil.copytree(wan_folder, bare)
    (bare / "diffusion_pytorch_model.safetensors").rename(bare / "diffusion_pytorch_model.bin")
    damaged = tmp_path / "damaged"
    shutil.copytree(wan_folder, damaged)
    (damaged / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 100)
    eight = make_wan(tmp_path / "eight", temperal_downsample=[True, True, True])
    no_tokenizer = tmp_path / "no_tokenizer"
    shutil.copytree(text_folder, no_tokenizer)
    for path in no_tokenizer.glob("*token*"):
        path.unlink()
    cases = [
        (wan, None, "loaded from a folder"),
        (wan, tmp_path / "no", "no such folder"),
        (wan, tmp_path / "empty", "config.json cannot be read"),
        (wan, bare, "no .safetensors weights"),
        (wan, damaged, "diffusers cannot load it"),
        (wan, text_folder, "AutoencoderKLWan"),
        (wan, eight, "joins 8 frames"),
        (text, None, "loaded from a folder"),
        (text, wan_folder, "holds no tokenizer"),
        (text, no_tokenizer, "holds no tokenizer"),
    ]
    for build, path, message in cases:
        with pytest.raises(ConfigError, match=message):
            build(path)


def test_settings_that_do_not_belong() -> None:
    for cfg in (
        AutoencoderConfig(kind="pca", channels=4, fit_clips=4, precision="bf16"),
        AutoencoderConfig(kind="pca", channels=4),
    ):
        with pytest.raises(ConfigError):
            build_autoencoder(cfg, lambda count: [clip(0)])
    with pytest.raises(ConfigError, match=r"text_encoder\.dim"):
        build_text_encoder(TextEncoderConfig(kind="bytes"))
