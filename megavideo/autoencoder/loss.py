"""The loss of an autoencoder: reconstruction, KL, perceptual and adversarial terms.

Every sample counts the same, a clip as much as an image. Shape legend: B batch, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megavideo.autoencoder.features import PerceptualDistance
from megavideo.autoencoder.model import Reconstruction
from megavideo.config.schema.vae import VaeLossConfig
from megavideo.diffusion.randomness import SampleKey

# The adversary's weight grows over so many steps, so that its start does not shake what has been learned.
ADVERSARIAL_RAMP_STEPS = 200


@dataclass(frozen=True)
class LossTerms:
    """The terms: pixels' errors as weighted, the others without their weights; None where one is off."""

    reconstruction: torch.Tensor
    kl: torch.Tensor
    perceptual: torch.Tensor | None


def loss_terms(
    config: VaeLossConfig,
    found: Sequence[Reconstruction],
    videos: Sequence[torch.Tensor],
    keys: Sequence[Sequence[SampleKey]],
    distance: PerceptualDistance,
) -> LossTerms:
    """The terms of a step's batches: clips [B, 3, T, H, W] and images [B, 3, 1, H, W], with their reconstructions."""
    errors = []
    for item, video in zip(found, videos, strict=True):
        difference = item.video.float() - video
        error = config.l1 * difference.abs() + config.l2 * difference.square()
        errors.append(error.flatten(1).mean(1))
    divergences = [kl_divergence(item.mean.float(), item.log_variance.float()) for item in found]
    perceptual = None
    if config.perceptual:
        count = config.perceptual_frames or 1
        distances = [_frame_distance(*pair, count, distance) for pair in zip(found, videos, keys, strict=True)]
        perceptual = torch.cat(distances).mean()
    return LossTerms(torch.cat(errors).mean(), torch.cat(divergences).mean(), perceptual)


def total(config: VaeLossConfig, terms: LossTerms) -> torch.Tensor:
    """The weighted sum, without the adversary."""
    loss = terms.reconstruction + config.kl * terms.kl
    return loss if terms.perceptual is None else loss + config.perceptual * terms.perceptual


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL divergence [B] of a posterior [B, ...] from a standard normal, a mean over latent numbers (Kingma 2014)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).flatten(1).mean(1)


def adversarial_weight(config: VaeLossConfig, step: int) -> float:
    """The weight of the adversarial term at a step, counted from 0; 0 where it does not count."""
    if not config.adversarial or config.adversarial_start is None or step < config.adversarial_start:
        return 0.0
    return config.adversarial * min(1.0, (step - config.adversarial_start + 1) / ADVERSARIAL_RAMP_STEPS)


def _frame_distance(
    found: Reconstruction, video: torch.Tensor, keys: Sequence[SampleKey], count: int, distance: PerceptualDistance
) -> torch.Tensor:
    """Distance [B] over `count` frames drawn from each clip."""
    frames = video.shape[2]
    left, right = [], []
    for item, (restored, original) in enumerate(zip(found.video, video, strict=True)):
        chosen = torch.randperm(frames, generator=keys[item].generator("perceptual"))[:count].to(video.device)
        left.append(restored[:, chosen].transpose(0, 1))
        right.append(original[:, chosen].transpose(0, 1))
    return distance(torch.cat(left), torch.cat(right)).view(len(left), -1).mean(1)
