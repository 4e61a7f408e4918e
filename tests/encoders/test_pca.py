from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from megavideo.encoders.video.autoencoder import FitVideos
from megavideo.encoders.video.pca import PcaAutoencoder, equalising_rotation, fit_pca
from megavideo.errors import ConfigError, DataError

COLOURS = ((230, 40, 40), (40, 200, 60), (50, 80, 230), (230, 210, 40))


def shape_video(seed: int, frames: int = 9, size: int = 64) -> torch.Tensor:
    """A disc or square of one of four colours moving in one of four directions, [3, T, H, W] in -1..1."""
    rng = np.random.default_rng(seed)
    direction = np.array([(0, 1), (0, -1), (1, 0), (-1, 0)][rng.integers(4)])
    centre = rng.uniform(20, size - 20, 2)
    rows, columns = np.mgrid[:size, :size]
    video = np.empty((frames, size, size, 3))
    disc = rng.integers(2) == 0
    for index in range(frames):
        y, x = centre + direction * (index - frames // 2) * 2.0
        distance = np.hypot(rows - y, columns - x) if disc else np.maximum(abs(rows - y), abs(columns - x))
        mask = np.clip(10.5 - distance, 0, 1)[..., None]
        video[index] = mask * np.array(COLOURS[seed % 4]) + (1 - mask) * 30
    return torch.from_numpy(video / 127.5 - 1.0).float().permute(3, 0, 1, 2).contiguous()


def videos(make: Callable[[int], torch.Tensor], available: int = 64) -> FitVideos:
    def fit_videos(count: int) -> Iterator[torch.Tensor]:
        return (make(seed) for seed in range(min(count, available)))

    return fit_videos


@pytest.fixture(scope="module")
def fitted() -> PcaAutoencoder:
    return fit_pca(16, 48, videos(shape_video))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / (a - b).square().mean()))


def test_moving_shapes_are_restored(fitted: PcaAutoencoder, record_property: Callable[[str, object], None]) -> None:
    values = []
    for seed in range(100, 108):
        video = shape_video(seed, frames=17)
        latent = fitted.encode(video)
        assert latent.shape == (16, 5, 8, 8)
        values.append(psnr(fitted.decode(latent), video))
    record_property("psnr_db", round(float(np.mean(values)), 2))
    assert np.mean(values) > 26.0


def test_latents_are_standard(fitted: PcaAutoencoder) -> None:
    latents = torch.stack([fitted.encode(shape_video(seed)) for seed in range(48)])
    for part in (latents[:, :, :1], latents[:, :, 1:]):
        assert part.mean(dim=(0, 2, 3, 4)).abs().max() < 0.15
        assert (part.std(dim=(0, 2, 3, 4)) - 1.0).abs().max() < 0.2


def test_channels_share_the_variance_and_mean_the_same_in_all_frames(fitted: PcaAutoencoder) -> None:
    for basis in (fitted.first, fitted.group):
        assert basis.spread.max() / basis.spread.min() < 1.6
    # A still clip has nearly the same latent in its first frame and in the groups after it.
    still = shape_video(3, frames=1).expand(3, 9, 64, 64)
    latent = fitted.encode(still)
    for group in (1, 2):
        similarity = torch.cosine_similarity(latent[:, 0].flatten(), latent[:, group].flatten(), dim=0)
        assert similarity > 0.97


def test_equalising_rotation_is_orthogonal_and_levels_the_diagonal() -> None:
    factors = np.random.default_rng(0).normal(size=(16, 16)) * np.exp(-np.arange(16.0))
    covariance = factors.T @ factors
    turn = equalising_rotation(covariance)
    assert np.abs(turn.T @ turn - np.eye(16)).max() < 1e-12
    turned = np.diag(turn.T @ covariance @ turn)
    assert np.abs(turned - np.trace(covariance) / 16).max() < 1e-9


def test_causal(fitted: PcaAutoencoder) -> None:
    video = shape_video(5, frames=9)
    assert torch.equal(fitted.encode(video)[:, :2], fitted.encode(video[:, :5]))
    assert torch.equal(fitted.encode(video[:, :1])[:, 0], fitted.encode(video)[:, 0])


def test_fit_is_reproducible_and_saved_exactly(fitted: PcaAutoencoder, tmp_path: Path) -> None:
    again = fit_pca(16, 48, videos(shape_video))
    fitted.save(tmp_path)
    loaded = PcaAutoencoder.load(tmp_path)
    video = shape_video(7)
    assert torch.equal(again.encode(video), fitted.encode(video))
    assert torch.equal(loaded.encode(video), fitted.encode(video))
    assert torch.equal(loaded.decode(fitted.encode(video)), fitted.decode(fitted.encode(video)))
    (tmp_path / "pca.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(DataError, match="damaged"):
        PcaAutoencoder.load(tmp_path)


def test_full_rank_is_lossless() -> None:
    def noise(seed: int) -> torch.Tensor:
        return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1

    autoencoder = fit_pca(192, 32, videos(noise, 32))
    assert psnr(autoencoder.decode(autoencoder.encode(noise(99))), noise(99)) > 80


@pytest.mark.parametrize("frames", [1, 5])
def test_little_or_flat_data_still_works(frames: int) -> None:
    flat = torch.full((3, frames, 8, 8), 0.25)
    autoencoder = fit_pca(16, 4, videos(lambda seed: flat, 1))
    latent = autoencoder.encode(flat)
    assert torch.isfinite(latent).all() and latent.abs().max() < 1e-2
    assert (autoencoder.decode(latent) - flat).abs().max() < 1e-3
    # Fitted to images or a single block, it takes videos too.
    moving = shape_video(1, frames=9)
    restored = autoencoder.decode(autoencoder.encode(moving))
    assert restored.shape == moving.shape and torch.isfinite(restored).all()


def test_images_only_hold_videos_still() -> None:
    autoencoder = fit_pca(48, 48, videos(lambda seed: shape_video(seed, frames=1)))
    still = shape_video(60, frames=1).expand(3, 5, 64, 64)
    assert psnr(autoencoder.decode(autoencoder.encode(still)), still) > 30


def test_faults(fitted: PcaAutoencoder) -> None:
    with pytest.raises(ConfigError, match=r"autoencoder.channels=193"):
        fit_pca(193, 1, videos(shape_video))
    with pytest.raises(DataError, match="no clip"):
        fit_pca(4, 1, videos(shape_video, 0))
    with pytest.raises(ValueError, match="1 \\+ 4n"):
        fitted.encode(torch.zeros(3, 4, 8, 8))
