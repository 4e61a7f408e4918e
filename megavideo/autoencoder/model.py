"""The autoencoder that is trained: made or loaded, and its two ways through clips and images.

Shape legend: B batch, C latent channels, T frames, H height, W width; t, h, w of the latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from megavideo.config.schema.vae import VaeModelConfig
from megavideo.encoders.families import FAMILIES, Family, decode_raw, family_of, load_weights
from megavideo.encoders.pretrained import open_pretrained
from megavideo.encoders.tiles.wan import WanTiles
from megavideo.encoders.video.loaded import channel_statistics

_FIELD = "model.path"
# A new posterior begins narrow, so that its noise is not the first thing to be learned away.
_FIRST_LOG_VARIANCE = -6.0
_LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class Reconstruction:
    """A video [B, 3, T, H, W], unclamped, and the posterior of its latent: mean and log variance [B, C, t, h, w]."""

    video: torch.Tensor
    mean: torch.Tensor
    log_variance: torch.Tensor


class TrainedAutoencoder(nn.Module):
    """A class of diffusers as one module: videos in, reconstructions out."""

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.time_ratio, self.space_ratio = family.ratios(model.config)
        self.latent_channels = int(model.config[family.channels_key])
        self._tiles = WanTiles(model, None) if family.kind == "wan" else None

    def forward(self, videos: list[torch.Tensor], noises: list[torch.Tensor]) -> list[Reconstruction]:
        """Encode each batch [B, 3, T, H, W], draw from the posterior with standard normal noise, and decode."""
        found = []
        for video, noise in zip(videos, noises, strict=True):
            mean, log_variance = self.posterior(video)
            latent = mean + torch.exp(0.5 * log_variance) * noise.to(mean)
            found.append(Reconstruction(self.decode(latent), mean, log_variance))
        return found

    def posterior(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance [B, C, t, h, w] of a video's latent."""
        if self._tiles is not None:
            moments = torch.cat(list(self._tiles.encode([video])), 2)
            mean, log_variance = moments.chunk(2, dim=1)
            return mean, log_variance.clamp(*_LOG_VARIANCE_RANGE)
        latent = self.model.encode(video).latent_dist
        return latent.mean, latent.logvar

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Video [B, 3, T, H, W], unclamped, of a raw latent."""
        if self._tiles is not None:
            # not by the class's own method: it clamps, and a pixel outside the range would have no gradient
            return torch.cat(list(self._tiles.decode([latent])), 2)
        return decode_raw(self.model, self.family, latent)

    def latent_shape(self, video: torch.Tensor) -> tuple[int, ...]:
        """[C, t, h, w] of a video [3, T, H, W]."""
        _, frames, height, width = video.shape
        groups = 1 + (frames - 1) // self.time_ratio
        return self.latent_channels, groups, height // self.space_ratio, width // self.space_ratio

    @torch.no_grad()
    def reconstruct(self, video: torch.Tensor) -> torch.Tensor:
        """Video [3, T, H, W] in -1..1, on the CPU, by way of the posterior's mean."""
        device = next(self.model.parameters()).device
        mean, _ = self.posterior(video[None].to(device))
        return self.decode(mean)[0].float().cpu().clamp(-1.0, 1.0)

    @torch.no_grad()
    def keep_statistics(self, videos: list[torch.Tensor]) -> None:
        """Measure mean and deviation of each latent channel, and keep them where the class has a place for them."""
        device = next(self.model.parameters()).device
        measured = channel_statistics(self.posterior(video[None].to(device))[0][0].float().cpu() for video in videos)
        if self.family.kind == "ltx":
            self.model.latents_mean.copy_(measured.mean)
            self.model.latents_std.copy_(measured.std)
        elif self.family.kind in ("wan", "cogvideox"):
            self.model.register_to_config(latents_mean=measured.mean.tolist(), latents_std=measured.std.tolist())


def build_model(config: VaeModelConfig) -> TrainedAutoencoder:
    """Make a new autoencoder, by torch's global generator, or load one; ConfigError where the folder cannot be used."""
    if config.path is not None:
        folder = open_pretrained(_FIELD, config.path, "vae")
        family = family_of(_FIELD, folder)
        return TrainedAutoencoder(load_weights(_FIELD, folder, family, torch.float32), family)
    return TrainedAutoencoder(_new_wan(config), FAMILIES["wan"])


def _new_wan(config: VaeModelConfig) -> Any:
    from diffusers import AutoencoderKLWan

    assert config.latent_channels and config.width_factors and config.halve_time and config.patch
    channels, patch = config.latent_channels, config.patch
    model: Any = AutoencoderKLWan(
        base_dim=config.width,
        z_dim=channels,
        dim_mult=list(config.width_factors),
        num_res_blocks=config.res_blocks,
        temperal_downsample=list(config.halve_time),
        is_residual=config.shortcuts,
        patch_size=patch if patch > 1 else None,
        in_channels=3 * patch * patch,
        out_channels=3 * patch * patch,
        scale_factor_spatial=patch * 2 ** (len(config.width_factors) - 1),
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    )
    with torch.no_grad():
        model.quant_conv.weight[channels:] *= 0.1
        model.quant_conv.bias[channels:] = _FIRST_LOG_VARIANCE
    return model
