"""Autoencoders of diffusers, one layer at a time over all of a clip and each layer tile by tile.

What a layer computes is exactly what it computes for the whole: a tile carries the margin that this one layer sees, and
a group norm takes its statistics from all tiles of the layer before. Between layers the activation waits on the host.
"""

from __future__ import annotations

from typing import Any

import torch

from megavideo.encoders.families import Family, own_frames
from megavideo.encoders.tiles import cogvideox, hunyuan_video, ltx
from megavideo.encoders.tiles.activation import MEMORY_BYTES, Activation
from megavideo.encoders.tiles.axes import Size
from megavideo.encoders.tiles.layer import TILE_FRAMES, LayerRunner
from megavideo.errors import ConfigError

_WALKS: dict[str, Any] = {"hunyuan_video": hunyuan_video, "cogvideox": cogvideox, "ltx": ltx}


class LayerwiseAutoencoder:
    """Encoder and decoder of a model of any family but `wan`.

    `tile` is the side of a tile in pixels. The device holds the weights and one tile's features, whatever the size and
    length of the clip, and of HunyuanVideo the keys and values of the layer that attends; the host holds the features
    of two or three layers, in files where a layer has more than `memory_bytes`. Raises ConfigError where the model
    joins frames before its first layer.
    """

    def __init__(self, family: Family, model: Any, tile: int, memory_bytes: int = MEMORY_BYTES) -> None:
        if int(model.config.get("patch_size_t") or 1) > 1:
            raise ConfigError("autoencoder.tile", tile, "this model has patches of several frames", "leave it out")
        self._model, self._tile, self._memory_bytes = model, tile, memory_bytes
        self._walk = _WALKS[family.kind]
        self._time_ratio, self._space_ratio = family.ratios(model.config)
        # CogVideoX has few frames at a time by itself.
        self._tile_frames = None if family.kind == "cogvideox" else TILE_FRAMES

    def fits(self, frames: int, height: int, width: int) -> bool:
        """Whether a video is no larger than one tile, so that the class may take it as a whole."""
        return frames <= TILE_FRAMES and max(height, width) <= self._tile

    @torch.no_grad()
    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Moments [1, 2C, t, h, w], on the host, of a video [1, 3, T, H, W]."""
        _, _, frames, height, width = video.shape
        found: Activation = self._walk.encode(self._model, self._runner((frames, height, width)), Activation(video))
        return found.values

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Video [1, 3, T, H, W], on the host, of a raw latent [1, C, t, h, w]."""
        _, _, frames, height, width = latent.shape
        size = (1 + (frames - 1) * self._time_ratio, height * self._space_ratio, width * self._space_ratio)
        found: Activation = self._walk.decode(self._model, self._runner(size), Activation(latent))
        return own_frames(found.values, frames, self._time_ratio)

    def _runner(self, size: Size) -> LayerRunner:
        return LayerRunner(self._model, size, self._tile, self._tile_frames, self._memory_bytes)
