"""Diffusers' causal 3D video autoencoder (`AutoencoderKLWan`), loaded from a local folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megavideo.data.storage import write_file
from megavideo.encoders.autoencoder import FitVideos, check_video
from megavideo.encoders.pretrained import PretrainedFolder, compute_device, open_pretrained, reopen_pretrained
from megavideo.errors import ConfigError, DataError

_CONFIG_NAME = "wan.json"
_PIPELINE_PART = "vae"
_CLASS_NAME = "AutoencoderKLWan"
# The class in diffusers feeds itself four frames at a time, whatever its configuration says.
_GROUP_FRAMES = 4
_CALIBRATION_CLIPS = 64
_SMALLEST_STD = 1e-4
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LatentStatistics:
    """Mean [C] and standard deviation [C] of raw latents, by which they are standardised."""

    mean: torch.Tensor
    std: torch.Tensor


class WanAutoencoder:
    """`AutoencoderKLWan` behind the protocol of `VideoAutoencoder`. Encoding takes the posterior's mode."""

    def __init__(self, folder: PretrainedFolder, precision: str, statistics: LatentStatistics | None) -> None:
        self.time_ratio, self.space_ratio = wan_ratios(folder)
        self.latent_channels = int(folder.config["z_dim"])
        self.precision = precision
        self.folder = folder
        self.device = compute_device()
        self._dtype = _DTYPES[precision]
        self._model = _load_model(folder, self._dtype).to(self.device)
        # Without statistics raw latents come out, from which they are then measured.
        self.statistics = statistics or LatentStatistics(
            torch.zeros(self.latent_channels), torch.ones(self.latent_channels)
        )

    @torch.no_grad()
    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Latent [C, t, h, w] float32 of a video [3, T, H, W] in -1..1."""
        check_video(video, self.time_ratio, self.space_ratio)
        raw = self._model.encode(video[None].to(self.device, self._dtype)).latent_dist.mode()[0].float().cpu()
        return (raw - _per_channel(self.statistics.mean)) / _per_channel(self.statistics.std)

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Video [3, T, H, W] float32 in -1..1 of a latent [C, t, h, w]."""
        raw = latent.float().cpu() * _per_channel(self.statistics.std) + _per_channel(self.statistics.mean)
        video: torch.Tensor = self._model.decode(raw[None].to(self.device, self._dtype)).sample[0]
        return video.float().cpu().clamp(-1.0, 1.0)

    def save(self, folder: Path) -> None:
        """Write wan.json: where the weights are (they are not copied), their configuration and the statistics."""
        description = {
            "path": str(self.folder.path),
            "fingerprint": self.folder.fingerprint,
            "precision": self.precision,
            "config": self.folder.config,
            "latents_mean": self.statistics.mean.tolist(),
            "latents_std": self.statistics.std.tolist(),
        }
        write_file(folder / _CONFIG_NAME, json.dumps(description, indent=2).encode())

    @classmethod
    def load(cls, folder: Path) -> WanAutoencoder:
        """Read what `save` wrote; DataError where it is damaged, or where the weights have gone or changed."""
        path = folder / _CONFIG_NAME
        try:
            stored = json.loads(path.read_bytes())
            statistics = LatentStatistics(torch.tensor(stored["latents_mean"]), torch.tensor(stored["latents_std"]))
            precision = stored["precision"]
            stored["path"], stored["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: damaged ({error}). Remedy: encode the dataset again") from error
        return cls(reopen_pretrained(path, stored, _PIPELINE_PART), precision, statistics)


def open_wan(path: str | None) -> PretrainedFolder:
    """The folder of an autoencoder, checked but not loaded; ConfigError where it is missing or has no weights."""
    return open_pretrained("autoencoder.path", path, _PIPELINE_PART)


def build_wan(path: str | None, precision: str, fit_videos: FitVideos) -> WanAutoencoder:
    """Load the autoencoder at `path`.

    Latents are standardised by `latents_mean` and `latents_std` of its configuration; where these are missing or are
    not one number a channel, they are measured on up to 64 clips. Raises ConfigError where the folder cannot be used.
    """
    folder = open_wan(path)
    statistics = _configured_statistics(folder.config)
    autoencoder = WanAutoencoder(folder, precision, statistics)
    if statistics is None:
        autoencoder.statistics = _measured_statistics(autoencoder, fit_videos)
    return autoencoder


def _configured_statistics(config: dict[str, Any]) -> LatentStatistics | None:
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if not isinstance(mean, list) or not isinstance(std, list) or not len(mean) == len(std) == config.get("z_dim"):
        return None
    if any(value <= 0 for value in std):
        return None
    return LatentStatistics(torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32))


def _measured_statistics(autoencoder: WanAutoencoder, fit_videos: FitVideos) -> LatentStatistics:
    count = 0
    total = torch.zeros(autoencoder.latent_channels, dtype=torch.float64)
    squares = torch.zeros_like(total)
    for video in fit_videos(_CALIBRATION_CLIPS):
        values = autoencoder.encode(video).double().flatten(1)
        count += values.shape[1]
        total += values.sum(dim=1)
        squares += values.square().sum(dim=1)
    if count == 0:
        raise DataError("autoencoder: no clip to measure its latents on. Remedy: give clips that can be encoded")
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0.0).sqrt().clamp_min(_SMALLEST_STD)
    return LatentStatistics(mean.float(), std.float())


def wan_ratios(folder: PretrainedFolder) -> tuple[int, int]:
    """Time and space ratio by the folder's configuration; ConfigError where it is of another kind or cannot be used."""
    config = folder.config
    class_name = config.get("_class_name")
    if class_name != _CLASS_NAME:
        raise ConfigError(
            "autoencoder.path", str(folder.path), f"it holds a {class_name}", f"give a folder of an {_CLASS_NAME}"
        )
    for key in ("z_dim", "dim_mult", "temperal_downsample"):
        if key not in config:
            raise ConfigError("autoencoder.path", str(folder.path), f"its config.json has no {key}", "restore the file")
    time_ratio = 2 ** sum(bool(down) for down in config["temperal_downsample"])
    space_ratio = 2 ** (len(config["dim_mult"]) - 1) * int(config.get("patch_size") or 1)
    if time_ratio != _GROUP_FRAMES:
        raise ConfigError(
            "autoencoder.path",
            str(folder.path),
            f"it joins {time_ratio} frames, and {_CLASS_NAME} of diffusers works on {_GROUP_FRAMES} at a time",
            f"give one that joins {_GROUP_FRAMES} (two true values in temperal_downsample)",
        )
    return time_ratio, space_ratio


def _load_model(folder: PretrainedFolder, dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderKLWan

    try:
        model = AutoencoderKLWan.from_pretrained(
            str(folder.path), use_safetensors=True, local_files_only=True, torch_dtype=dtype, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(
            "autoencoder.path", str(folder.path), f"diffusers cannot load it: {error}", "check the folder's files"
        ) from error
    return model.eval().requires_grad_(False)


def _per_channel(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]
