"""Measures of quality against closed forms, and against what they are there to tell apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from megavideo.autoencoder.features import RANDOM_NAME, PerceptualDistance
from megavideo.autoencoder.quality import Quality, flicker, mean_quality, measure, psnr_db, ssim
from megavideo.errors import ConfigError


def video(seed: int = 0, frames: int = 3, side: int = 32) -> torch.Tensor:
    noise = torch.rand(3, frames, side // 4, side // 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(noise, size=(side, side), mode="bilinear")


def test_psnr_by_its_formula() -> None:
    x = torch.zeros(3, 2, 16, 16)
    assert psnr_db(x + 0.2, x) == pytest.approx(20.0, abs=1e-4)  # 10 log10(2^2 / 0.2^2)
    assert psnr_db(x, x) == 100.0


def test_ssim_by_its_formula() -> None:
    # Of two flat pictures only the luminance term is left (Wang et al. 2004, equation 6).
    a, b = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), -0.25)
    c1 = (0.01 * 2) ** 2
    expected = (2 * 0.5 * -0.25 + c1) / (0.25 + 0.0625 + c1)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-6)
    x = video().transpose(0, 1)
    assert ssim(x, x) == pytest.approx(1.0)
    assert 0.3 < ssim(x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), x) < 0.95


def test_flicker_sees_change_only() -> None:
    x = video()
    assert flicker(x + 0.3, x) == pytest.approx(0.0, abs=1e-4)
    trembling = x.clone()
    trembling[:, 1] += 2 / 255
    assert flicker(trembling, x) == pytest.approx(1.0, rel=1e-3)  # one grey level up, then one down
    assert flicker(x[:, :1], x[:, :1]) == 0.0


def test_mean_and_measure() -> None:
    distance = PerceptualDistance(None)
    found = measure(video(), video(), distance)
    assert found == Quality(100.0, pytest.approx(1.0), 0.0, 0.0)
    mean = mean_quality([Quality(10, 0.5, 1, 2), Quality(20, 1.0, 3, 4)])
    assert mean == Quality(15, 0.75, 2, 3)


def test_random_features_mind_blur_more_than_brightness() -> None:
    distance = PerceptualDistance(None)
    assert distance.name == RANDOM_NAME
    edges = (video(side=64)[:, 0] > 0).float()[None] * 2 - 1
    blurred = F.avg_pool2d(F.pad(edges, (3, 3, 3, 3), mode="replicate"), 7, 1)
    error = float((blurred - edges).square().mean().sqrt())
    brighter = edges + error  # as large an error of pixels, with every edge whole
    near, far = float(distance(brighter, edges)), float(distance(blurred, edges))
    assert 0 < near < 0.7 * far
    assert float(distance(edges, edges)) == 0.0
    # The same on every machine and in every process: nothing of the global generator goes in.
    torch.manual_seed(5)
    assert torch.equal(PerceptualDistance(None)(blurred, edges), distance(blurred, edges))


def test_distance_has_a_gradient_for_pictures() -> None:
    x = video()[:, 0][None].requires_grad_(True)
    PerceptualDistance(None)(x, video(1)[:, 0][None]).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def vgg_tensors(linear: bool) -> dict[str, torch.Tensor]:
    widths = {0: 4, 2: 4, 5: 4, 7: 4, 10: 4, 12: 4, 14: 4, 17: 4, 19: 4, 21: 4, 24: 4, 26: 4, 28: 4}
    tensors: dict[str, torch.Tensor] = {}
    before = 3
    for number, width in widths.items():
        generator = torch.Generator().manual_seed(number)
        tensors[f"features.{number}.weight"] = torch.randn(width, before, 3, 3, generator=generator) * 0.3
        tensors[f"features.{number}.bias"] = torch.zeros(width)
        before = width
    if linear:
        tensors |= {f"lin{level}.model.1.weight": torch.full((1, 4, 1, 1), 0.5) for level in range(5)}
    return tensors


def test_weights_of_a_file(tmp_path: Path) -> None:
    a, b = video()[:, 0][None], video(1)[:, 0][None]
    save_file(vgg_tensors(False), tmp_path / "vgg.safetensors")
    save_file(vgg_tensors(True), tmp_path / "lpips.safetensors")
    plain = PerceptualDistance(str(tmp_path / "vgg.safetensors"))
    weighted = PerceptualDistance(str(tmp_path / "lpips.safetensors"))
    assert plain.name == "vgg.safetensors"
    # A mean over five levels, and a sum over them with weights of a half.
    assert float(weighted(a, b)) == pytest.approx(float(plain(a, b)) * 5 * 0.5, rel=1e-5)
    broken = vgg_tensors(False)
    del broken["features.12.bias"]
    save_file(broken, tmp_path / "broken.safetensors")
    for name, message in (("broken", r"features\.12\.bias"), ("none", "cannot be read")):
        with pytest.raises(ConfigError, match=message):
            PerceptualDistance(str(tmp_path / f"{name}.safetensors"))
