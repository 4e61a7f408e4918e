"""Diffusers' causal 3D video autoencoders, loaded from a local folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from megavideo.border.fields import Finite, Positive, Size
from megavideo.border.json_text import read_json
from megavideo.border.names import shown
from megavideo.border.refused import Refused
from megavideo.encoders.families import LatentStatistics, decode_raw, family_of, given_statistics, load_weights
from megavideo.encoders.pretrained import (
    PretrainedFolder,
    Stored,
    compute_device,
    move_pretrained,
    open_pretrained,
    reopen_pretrained,
)
from megavideo.encoders.tiles.layerwise import LayerwiseAutoencoder
from megavideo.encoders.tiles.wan import GROUP_FRAMES, WanTiles
from megavideo.encoders.video.autoencoder import FitVideos, check_video
from megavideo.errors import ConfigError, DataError
from megavideo.observe.whole_file import write_file

_FIELD = "autoencoder.path"
_PIPELINE_PART = "vae"
_CALIBRATION_CLIPS = 64
_SMALLEST_STD = 1e-4
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Of a film in memory so many groups of frames are worked on at a time.
_WINDOW_GROUPS = 4


@dataclass(frozen=True)
class _Stored(Stored):
    precision: str
    latents_mean: tuple[Finite, ...]
    latents_std: tuple[Positive, ...]
    tile: Size | None = None

    def __post_init__(self) -> None:
        if self.precision not in _DTYPES or len(self.latents_mean) != len(self.latents_std):
            raise Refused(f"precision {shown(self.precision)}, {len(self.latents_mean)} means of latents")


class LoadedAutoencoder:
    """A class of diffusers behind the protocol of `VideoAutoencoder`. Encoding takes the posterior's mode.

    `tile` is the side in pixels of the squares in which pictures are worked on, a few frames at a time; they give what
    the whole gives. `AutoencoderKLWan` goes from one group of frames to the next, in memory that the length does not
    change. The others go from layer to layer, and of a longer clip only the host holds more (`tiles/layerwise.py`).
    """

    def __init__(
        self, kind: str, folder: PretrainedFolder, precision: str, tile: int | None, statistics: LatentStatistics | None
    ) -> None:
        family = family_of(_FIELD, folder, kind)
        self._family = family
        self.kind = kind
        self.time_ratio, self.space_ratio = family.ratios(folder.config)
        self.latent_channels = int(folder.config[family.channels_key])
        self.precision = precision
        self.tile = tile
        self.folder = folder
        self.device = compute_device()
        self._dtype = _DTYPES[precision]
        _check_tile(tile, self.space_ratio)
        model = load_weights(_FIELD, folder, family, self._dtype)
        self._model = model.eval().requires_grad_(False).to(self.device)
        self.statistics = statistics or given_statistics(folder.config, self._model, self.latent_channels)
        self._tiles: WanTiles | None = None
        self._layerwise: LayerwiseAutoencoder | None = None
        if kind == "wan":
            self._tiles = WanTiles(self._model, tile // self.space_ratio if tile else None)
        elif tile is not None:
            self._layerwise = LayerwiseAutoencoder(family, self._model, tile)

    @torch.no_grad()
    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Latent [C, t, h, w] float32 of a video [3, T, H, W] in -1..1."""
        check_video(video, self.time_ratio, self.space_ratio)
        if self._tiles is not None:
            frames = video.shape[1]
            edges = [0, *range(1 + _WINDOW_GROUPS * GROUP_FRAMES, frames, _WINDOW_GROUPS * GROUP_FRAMES), frames]
            # tiles of a video that is there as a whole need not be kept from window to window
            edges = edges if self.tile is None else [0, frames]
            return torch.cat(list(self.encode_windows(video[:, a:b] for a, b in pairwise(edges))), dim=1)
        if self._layerwise is None or self._layerwise.fits(*video.shape[1:]):
            moments = self._model.encode(self._to_device(video)).latent_dist.parameters
        else:
            moments = self._layerwise.encode(video[None])
        return self._standardised(moments.chunk(2, dim=1)[0][0].float().cpu())

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Video [3, T, H, W] float32 in -1..1 of a latent [C, t, h, w]."""
        if self._tiles is not None:
            groups = latent.shape[1] if self.tile else _WINDOW_GROUPS
            return torch.cat(list(self.decode_windows(latent.split(groups, dim=1))), dim=1)
        raw = self._raw(latent)
        if self._layerwise is None or self._layerwise.fits(*self._video_size(latent)):
            video = decode_raw(self._model, self._family, self._to_device(raw))
        else:
            video = self._layerwise.decode(raw[None])
        return video[0].float().cpu().clamp(-1.0, 1.0)

    def decode_for_loss(self, latent: torch.Tensor) -> torch.Tensor:
        """`decode` with gradients and, of kind `wan`, unclamped; whole, whatever `tile` says, on the model's device."""
        raw = self._to_device(self._raw(latent))
        # the method of diffusers clamps what Wan decodes
        whole = (
            WanTiles(self._model, None).decode([raw])
            if self.kind == "wan"
            else [decode_raw(self._model, self._family, raw)]
        )
        return torch.cat(list(whole), dim=2)[0].float()

    @torch.no_grad()
    def encode_windows(self, windows: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Latents [C, n, h, w] of the windows [3, T, H, W] of one film of any length, in order; kind `wan` only.

        The first window has 1 + 4n frames and the others 4n; memory does not grow with their number.
        """
        for moments in self._cached().encode(window[None].to(self._dtype) for window in windows):
            yield self._standardised(moments.chunk(2, dim=1)[0][0].float().cpu())

    @torch.no_grad()
    def decode_windows(self, latents: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Videos [3, T, H, W] of the windows [C, n, h, w] of one latent of any length, in order; kind `wan` only."""
        for video in self._cached().decode(self._raw(latent)[None].to(self._dtype) for latent in latents):
            yield video[0].float().cpu().clamp(-1.0, 1.0)

    def save(self, folder: Path) -> None:
        """Write KIND.json: where the weights are (they are not copied), their configuration and the statistics."""
        statistics = self._statistics()
        description = {
            "path": str(self.folder.path),
            "fingerprint": self.folder.fingerprint,
            "precision": self.precision,
            "tile": self.tile,
            "config": self.folder.config,
            "latents_mean": statistics.mean.tolist(),
            "latents_std": statistics.std.tolist(),
        }
        write_file(folder / f"{self.kind}.json", json.dumps(description, indent=2).encode())

    @classmethod
    def load(cls, folder: Path, kind: str) -> LoadedAutoencoder:
        """Read what `save` wrote; DataError where it is damaged, or where the weights have gone or changed."""
        kept = kept_autoencoder(folder, kind)
        return cls(kind, kept.folder, kept.precision, kept.tile, kept.statistics)

    def measure(self, fit_videos: FitVideos) -> None:
        """Measure mean and deviation of each channel on up to 64 clips, and standardise by them from now on."""
        channels = self.latent_channels
        self.statistics = LatentStatistics(torch.zeros(channels), torch.ones(channels))
        self.statistics = channel_statistics(self.encode(video) for video in fit_videos(_CALIBRATION_CLIPS))

    def _video_size(self, latent: torch.Tensor) -> tuple[int, int, int]:
        """Frames and sides of the video of a latent [C, t, h, w]."""
        _, frames, height, width = latent.shape
        return 1 + (frames - 1) * self.time_ratio, height * self.space_ratio, width * self.space_ratio

    def _standardised(self, raw: torch.Tensor) -> torch.Tensor:
        statistics = self._statistics()
        return (raw - _per_channel(statistics.mean)) / _per_channel(statistics.std)

    def _raw(self, latent: torch.Tensor) -> torch.Tensor:
        statistics = self._statistics()
        return latent.float().cpu() * _per_channel(statistics.std) + _per_channel(statistics.mean)

    def _statistics(self) -> LatentStatistics:
        assert self.statistics is not None
        return self.statistics

    def _to_device(self, values: torch.Tensor) -> torch.Tensor:
        return values[None].to(self.device, self._dtype)

    def _cached(self) -> WanTiles:
        if self._tiles is None:
            rule = "of the classes of diffusers only AutoencoderKLWan goes on from a cache of features"
            raise ConfigError("autoencoder", self.kind, rule, "encode clips as a whole, or take autoencoder=wan")
        return self._tiles


@dataclass(frozen=True)
class KeptAutoencoder:
    """What `LoadedAutoencoder.save` wrote: the folder of the weights, and with what these are used."""

    folder: PretrainedFolder
    precision: str
    tile: int | None
    statistics: LatentStatistics


def kept_autoencoder(folder: Path, kind: str) -> KeptAutoencoder:
    """Read what `LoadedAutoencoder.save` wrote to `folder`, but not the weights; raises as its `load` does."""
    path = folder / f"{kind}.json"
    try:
        stored = read_json(path, _Stored)
    except (OSError, Refused) as error:
        raise DataError(f"{path}: damaged ({error}). Remedy: encode the dataset again") from error
    statistics = LatentStatistics(torch.tensor(stored.latents_mean), torch.tensor(stored.latents_std))
    return KeptAutoencoder(reopen_pretrained(path, stored, _PIPELINE_PART), stored.precision, stored.tile, statistics)


def open_loaded(path: str | None) -> PretrainedFolder:
    """The folder of an autoencoder, checked but not loaded; ConfigError where it is missing or has no weights."""
    return open_pretrained(_FIELD, path, _PIPELINE_PART)


def loaded_ratios(kind: str, path: str | None) -> tuple[int, int]:
    """Time and space ratio of the autoencoder at `path`; ConfigError where it is of another kind."""
    folder = open_loaded(path)
    return family_of(_FIELD, folder, kind).ratios(folder.config)


def build_loaded(
    kind: str, path: str | None, precision: str, fit_videos: FitVideos, tile: int | None = None
) -> LoadedAutoencoder:
    """Load the autoencoder at `path`.

    Latents are standardised by the mean and deviation of each channel that come with the weights; without such, they
    are measured on up to 64 clips. Raises ConfigError where the folder cannot be used.
    """
    autoencoder = LoadedAutoencoder(kind, open_loaded(path), precision, tile, None)
    if autoencoder.statistics is None:
        autoencoder.measure(fit_videos)
    return autoencoder


def move_loaded(folder: Path, kind: str, path: str) -> None:
    """Have what `save` wrote to `folder` refer to the weights at `path`; ConfigError where these are others."""
    move_pretrained(folder / f"{kind}.json", _FIELD, path, _PIPELINE_PART)


def channel_statistics(latents: Iterable[torch.Tensor]) -> LatentStatistics:
    """Mean and standard deviation of each channel over latents [C, t, h, w]; DataError where there is none."""
    count = 0
    total: Any = 0.0
    squares: Any = 0.0
    for latent in latents:
        values = latent.double().flatten(1)
        count += values.shape[1]
        total = total + values.sum(dim=1)
        squares = squares + values.square().sum(dim=1)
    if count == 0:
        raise DataError("autoencoder: no clip to measure its latents on. Remedy: give clips that can be encoded")
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0.0).sqrt().clamp_min(_SMALLEST_STD)
    return LatentStatistics(mean.float(), std.float())


def _check_tile(tile: int | None, space_ratio: int) -> None:
    if tile is not None and tile % space_ratio:
        rule = f"must divide by {space_ratio}, the autoencoder's space ratio"
        raise ConfigError(
            "autoencoder.tile", tile, rule, f"take autoencoder.tile={-(-tile // space_ratio) * space_ratio}"
        )


def _per_channel(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]
