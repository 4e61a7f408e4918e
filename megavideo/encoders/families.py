"""The causal 3D autoencoders of diffusers that can be loaded: ratios, channels and statistics by configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from megavideo.encoders.pretrained import PretrainedFolder
from megavideo.errors import ConfigError

# The class in diffusers feeds itself four frames at a time, whatever its configuration says.
_WAN_GROUP_FRAMES = 4


@dataclass(frozen=True)
class LatentStatistics:
    """Mean [C] and standard deviation [C] of raw latents, by which they are standardised."""

    mean: torch.Tensor
    std: torch.Tensor


@dataclass(frozen=True)
class Family:
    """One class of diffusers. `ratios` gives (time, space) of a configuration that has all of `keys`."""

    kind: str
    class_name: str
    keys: tuple[str, ...]
    channels_key: str
    ratios: Callable[[Mapping[str, Any]], tuple[int, int]]


def _wan_ratios(config: Mapping[str, Any]) -> tuple[int, int]:
    time_ratio = 2 ** sum(bool(down) for down in config["temperal_downsample"])
    return time_ratio, 2 ** (len(config["dim_mult"]) - 1) * int(config.get("patch_size") or 1)


def _ltx_ratios(config: Mapping[str, Any]) -> tuple[int, int]:
    halvings = 2 ** sum(bool(down) for down in config["spatio_temporal_scaling"])
    time_ratio = config.get("temporal_compression_ratio") or int(config["patch_size_t"]) * halvings
    space_ratio = config.get("spatial_compression_ratio") or int(config["patch_size"]) * halvings
    return int(time_ratio), int(space_ratio)


FAMILIES: Mapping[str, Family] = {
    family.kind: family
    for family in (
        Family("wan", "AutoencoderKLWan", ("dim_mult", "temperal_downsample"), "z_dim", _wan_ratios),
        Family(
            "hunyuan_video",
            "AutoencoderKLHunyuanVideo",
            ("temporal_compression_ratio", "spatial_compression_ratio"),
            "latent_channels",
            lambda config: (int(config["temporal_compression_ratio"]), int(config["spatial_compression_ratio"])),
        ),
        Family(
            "cogvideox",
            "AutoencoderKLCogVideoX",
            ("temporal_compression_ratio", "block_out_channels"),
            "latent_channels",
            lambda config: (int(config["temporal_compression_ratio"]), 2 ** (len(config["block_out_channels"]) - 1)),
        ),
        Family(
            "ltx",
            "AutoencoderKLLTXVideo",
            ("spatio_temporal_scaling", "patch_size", "patch_size_t"),
            "latent_channels",
            _ltx_ratios,
        ),
    )
}


def family_of(field: str, folder: PretrainedFolder, kind: str | None = None) -> Family:
    """The family that a folder holds, which must be `kind` where that is given.

    Raises ConfigError, naming the setting `field`, where it holds another class, or a configuration that cannot be.
    """
    class_name = folder.config.get("_class_name")
    known = {family.class_name: family for family in FAMILIES.values()}
    family = known.get(str(class_name))
    if family is None or kind not in (None, family.kind):
        wanted = FAMILIES[kind].class_name if kind else "folder of one of " + ", ".join(known)
        remedy = f"take autoencoder={family.kind}" if family else f"give a folder of an {wanted}"
        raise ConfigError(field, str(folder.path), f"it holds a {class_name}, and an {wanted} is needed", remedy)
    for key in (*family.keys, family.channels_key):
        if key not in folder.config:
            raise ConfigError(field, str(folder.path), f"its config.json has no {key}", "restore the file")
    time_ratio = family.ratios(folder.config)[0]
    if family.kind == "wan" and time_ratio != _WAN_GROUP_FRAMES:
        raise ConfigError(
            field,
            str(folder.path),
            f"it joins {time_ratio} frames, and {class_name} of diffusers works on {_WAN_GROUP_FRAMES} at a time",
            f"give one that joins {_WAN_GROUP_FRAMES} (two true values in temperal_downsample)",
        )
    return family


def load_weights(field: str, folder: PretrainedFolder, family: Family, dtype: torch.dtype) -> Any:
    """The model of diffusers, on the CPU; ConfigError where its files cannot be used.

    It takes a clip as a whole: by itself HunyuanVideo's class cuts one of more than 16 frames into windows and fades
    them into each other.
    """
    import diffusers

    try:
        model = getattr(diffusers, family.class_name).from_pretrained(
            str(folder.path), use_safetensors=True, local_files_only=True, torch_dtype=dtype, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ConfigError(
            field, str(folder.path), f"diffusers cannot load it: {error}", "check the folder's files"
        ) from error
    model.use_framewise_encoding = model.use_framewise_decoding = False
    return model


def decode_raw(model: Any, family: Family, latent: torch.Tensor) -> torch.Tensor:
    """Video [B, 3, T, H, W], by the class's own method, of raw latents [B, C, t, h, w]."""
    # LTX models that were trained with noise are told that there is none.
    noise = {"temb": torch.zeros(1).to(latent)} if model.config.get("timestep_conditioning") else {}
    return own_frames(model.decode(latent, **noise).sample, latent.shape[2], family.ratios(model.config)[0])


def own_frames(video: torch.Tensor, latent_frames: int, time_ratio: int) -> torch.Tensor:
    """The frames of `video` [B, 3, T, H, W] that a latent stands for.

    CogVideoX makes four frames of the first latent one where their number is even; the last of them is its frame.
    """
    return video[:, :, -(1 + (latent_frames - 1) * time_ratio) :]


def given_statistics(config: Mapping[str, Any], model: Any, channels: int) -> LatentStatistics | None:
    """Statistics that the configuration has, or that the model keeps beside its weights (LTX); None without any.

    A list that is not one number a channel, and the mean 0 and deviation 1 of a model that was never measured, are
    none. One scaling factor for all channels is none either: it does not standardise each of them.
    """
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        kept = dict(model.named_buffers())
        mean, std = kept.get("latents_mean"), kept.get("latents_std")
    if mean is None or std is None:
        return None
    mean, std = (torch.as_tensor(values, dtype=torch.float32).flatten() for values in (mean, std))
    if not len(mean) == len(std) == channels or bool((std <= 0).any()):
        return None
    if bool((mean == 0).all()) and bool((std == 1).all()):
        return None
    return LatentStatistics(mean.cpu(), std.cpu())
