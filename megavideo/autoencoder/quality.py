"""How much of a clip is lost: PSNR, SSIM, a perceptual distance and flicker.

Shape legend: T frames, H height, W width. Videos are [3, T, H, W] in -1..1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_PEAK = 2.0
_MOST_DB = 100.0
_GREY_LEVELS = 127.5
# Wang et al. 2004.
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03


@dataclass(frozen=True)
class Quality:
    """Of one clip, or the mean over clips.

    `psnr_db` and `ssim` are higher where less is lost; `perceptual` is a distance of features. `flicker` is the mean
    error of the change from frame to frame, in grey levels of 255: what trembles though the picture stands still.
    """

    psnr_db: float
    ssim: float
    perceptual: float
    flicker: float


def measure(restored: torch.Tensor, original: torch.Tensor, distance: Distance) -> Quality:
    """The quality of a restored clip; `distance` compares pictures [N, 3, H, W]."""
    pictures = restored.transpose(0, 1), original.transpose(0, 1)
    with torch.no_grad():
        perceptual = float(torch.cat([distance(a[None], b[None]) for a, b in zip(*pictures, strict=True)]).mean())
    return Quality(psnr_db(restored, original), ssim(*pictures), perceptual, flicker(restored, original))


def mean_quality(qualities: Sequence[Quality]) -> Quality:
    """The mean over clips, each counting the same."""
    count = len(qualities)
    return Quality(
        psnr_db=sum(quality.psnr_db for quality in qualities) / count,
        ssim=sum(quality.ssim for quality in qualities) / count,
        perceptual=sum(quality.perceptual for quality in qualities) / count,
        flicker=sum(quality.flicker for quality in qualities) / count,
    )


def psnr_db(restored: torch.Tensor, original: torch.Tensor) -> float:
    """Peak signal-to-noise ratio over the whole clip, in dB; 100 where nothing is lost."""
    error = float((restored.double() - original.double()).square().mean())
    return min(_MOST_DB, 10.0 * float(torch.log10(torch.tensor(_PEAK**2 / max(error, 1e-12)))))


def ssim(restored: torch.Tensor, original: torch.Tensor) -> float:
    """Structural similarity of pictures [N, 3, H, W], a mean over places, colours and pictures; sides of 11 or more."""
    positions = torch.arange(_WINDOW, dtype=torch.float64) - (_WINDOW - 1) / 2
    bell = torch.exp(-positions.square() / (2 * _SIGMA**2))
    bell = bell / bell.sum()

    def blurred(x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, 1, *x.shape[2:])
        return F.conv2d(F.conv2d(flat, bell.view(1, 1, -1, 1)), bell.view(1, 1, 1, -1))

    a, b = restored.double(), original.double()
    mean_a, mean_b = blurred(a), blurred(b)
    variance_a = blurred(a * a) - mean_a.square()
    variance_b = blurred(b * b) - mean_b.square()
    covariance = blurred(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * _PEAK) ** 2, (_K2 * _PEAK) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((top / ((mean_a.square() + mean_b.square() + c1) * (variance_a + variance_b + c2))).mean())


def flicker(restored: torch.Tensor, original: torch.Tensor) -> float:
    """Mean absolute error of the difference of neighbouring frames, in grey levels; 0 for a single frame."""
    if original.shape[1] < 2:
        return 0.0
    return float((restored.diff(dim=1) - original.diff(dim=1)).abs().mean()) * _GREY_LEVELS
