"""`AutoencoderKLWan` piece by piece: exactly the same latents and pictures, in memory that the length does not change.

In time it goes on from its own cache of features, four frames by four, as diffusers does. In space only the layers
above the latent's resolution are tiled, which is where the memory goes. A tile carries a margin as wide as those layers
see, and the margin is cut off afterwards: what is kept has met nothing but true neighbours, so there is nothing to
blend. The layers at the latent's resolution, among them the attention over the whole picture, are never split.

Shape legend: B batch, C latent channels, D features, T frames, H height, W width; t, h, w of the latent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from megavideo.errors import ConfigError

GROUP_FRAMES = 4
_Cache = list[Any]
# A layer with its own cache of features: (input, cache, place in the cache, first chunk) -> output.
_Layer = Callable[[torch.Tensor, _Cache, list[int], bool], torch.Tensor]


@dataclass(frozen=True)
class _Span:
    """Along one axis: [begin, end) is kept, [low, high) is computed."""

    begin: int
    end: int
    low: int
    high: int


@dataclass(frozen=True)
class _Part:
    """Layers that run one after another, and how many features they cache."""

    layers: tuple[_Layer, ...]
    cached: int

    def run(self, x: torch.Tensor, cache: _Cache, first: bool) -> torch.Tensor:
        place = [0]
        for layer in self.layers:
            x = layer(x, cache, place, first)
        return x

    def new_cache(self) -> _Cache:
        return [None] * self.cached


class WanTiles:
    """Encoder and decoder of one model. `tile` is the side in latent points of what is kept of a tile; None: all.

    Autograd passes through; nothing is clamped. Raises ConfigError where a tile is asked of a model that attends
    within the layers to be tiled.
    """

    def __init__(self, model: Any, tile: int | None) -> None:
        self._model = model
        self._tile = tile
        self._patch = int(model.config.patch_size or 1)
        self._scale = 2 ** (len(model.config.dim_mult) - 1)
        down = list(model.encoder.down_blocks)
        last = max(number for number, block in enumerate(down) if _halves(block))
        up = list(model.decoder.up_blocks)
        # In the form of Wan 2.1 the first up block begins at the latent's resolution and ends in the upsampling.
        split = hasattr(up[0], "upsamplers")
        coarse = list(up[0].resnets) if split else []
        fine = [up[0].upsamplers[0], *up[1:]] if split else up
        self._encode_fine = _part(model.encoder.conv_in, *down[: last + 1])
        self._encode_coarse = _part(*down[last + 1 :], model.encoder.mid_block, _Head(model.encoder))
        self._decode_coarse = _part(model.decoder.conv_in, model.decoder.mid_block, *coarse)
        self._decode_fine = _part(*fine, _Head(model.decoder))
        self._encode_margin = encode_margin(down[: last + 1])
        self._decode_margin = decode_margin(fine)
        if tile is not None and model.config.attn_scales:
            raise ConfigError(
                "autoencoder.tile", tile, "this model attends at full resolution, which cannot be tiled", "leave it out"
            )

    def encode(self, windows: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Moments [B, 2C, t, h, w] of windows [B, 3, T, H, W] of one video, in order.

        The first window has 1 + 4n frames and the others 4n. Between two windows every tile's features are kept; a
        tiled video that is given as one window therefore takes the least memory.
        """
        from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

        fine: dict[int, _Cache] = {}
        coarse = self._encode_coarse.new_cache()
        for window, ends in _with_ends(windows):
            x = patchify(window, self._patch)
            lengths = _chunks(x.shape[2], ends[0])
            work = (self._encode_fine, fine, self._encode_margin)
            features = self._in_tiles(x, lengths, work, ends, (self._scale, 1))
            moments = []
            for i in range(features.shape[2]):
                feature = features[:, :, i : i + 1].to(self._device)
                found = self._encode_coarse.run(feature, coarse, ends[0] and i == 0)
                moments.append(self._at_rest(self._model.quant_conv(found)))
            yield torch.cat(moments, 2)

    def decode(self, windows: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Video [B, 3, T, H, W] of windows [B, C, t, h, w] of one raw latent, in order."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        fine: dict[int, _Cache] = {}
        coarse = self._decode_coarse.new_cache()
        for window, ends in _with_ends(windows):
            features = []
            for i in range(window.shape[2]):
                z = self._model.post_quant_conv(window[:, :, i : i + 1].to(self._device))
                features.append(self._at_rest(self._decode_coarse.run(z, coarse, ends[0] and i == 0)))
            x = torch.cat(features, 2)
            work = (self._decode_fine, fine, self._decode_margin)
            video = self._in_tiles(x, [1] * x.shape[2], work, ends, (1, self._scale))
            yield unpatchify(video, self._patch)

    def _at_rest(self, x: torch.Tensor) -> torch.Tensor:
        """With tiles, what waits for its tile or for its end waits in host memory."""
        return x if self._tile is None else x.cpu()

    @property
    def _device(self) -> torch.device:
        return next(iter(self._model.parameters())).device

    def _in_tiles(
        self,
        x: torch.Tensor,
        lengths: Sequence[int],
        work: tuple[_Part, dict[int, _Cache], int],
        ends: tuple[bool, bool],
        scales: tuple[int, int],
    ) -> torch.Tensor:
        """Run a part over `x`, tile by tile, and put what is kept together.

        `ends` tells whether this is the first window and whether it is the last; `scales` are the points of `x` and of
        the output for each latent point along an axis.
        """
        part, caches, margin = work
        before, after = scales
        latent_height, latent_width = x.shape[3] // before, x.shape[4] // before
        rows = spans(latent_height, self._tile, margin)
        columns = spans(latent_width, self._tile, margin)
        many = len(rows) * len(columns) > 1
        whole: torch.Tensor | None = None
        for number, (row, column) in enumerate((row, column) for row in rows for column in columns):
            cache = caches.pop(number, None) or part.new_cache()
            _move(cache, self._device)
            inside = x[..., row.low * before : row.high * before, column.low * before : column.high * before]
            done = self._in_time(part, cache, inside, lengths, ends[0])
            if not ends[1]:
                # Between windows a tile's features wait in host memory.
                _move(cache, torch.device("cpu") if many else self._device)
                caches[number] = cache
            if not many:
                return done
            if whole is None:
                whole = torch.empty(*done.shape[:3], latent_height * after, latent_width * after, dtype=done.dtype)
            top, left = (row.begin - row.low) * after, (column.begin - column.low) * after
            height, width = (row.end - row.begin) * after, (column.end - column.begin) * after
            kept = done[..., top : top + height, left : left + width]
            whole[..., row.begin * after : row.end * after, column.begin * after : column.end * after] = kept
        assert whole is not None
        return whole

    def _in_time(
        self, part: _Part, cache: _Cache, x: torch.Tensor, lengths: Sequence[int], first: bool
    ) -> torch.Tensor:
        done, begin = [], 0
        for length in lengths:
            frames = x[:, :, begin : begin + length].to(self._device)
            done.append(self._at_rest(part.run(frames, cache, first and begin == 0)))
            begin += length
        return torch.cat(done, 2)


class _Head(nn.Module):
    """Norm, activation and last convolution of an encoder or decoder."""

    def __init__(self, owner: Any) -> None:
        super().__init__()
        self.norm, self.activation, self.conv = owner.norm_out, owner.nonlinearity, owner.conv_out


def spans(length: int, tile: int | None, margin: int) -> list[_Span]:
    """Cut [0, length) into runs of `tile`, each with up to `margin` more on either side to be computed."""
    if tile is None or tile >= length:
        return [_Span(0, length, 0, length)]
    edges = [*range(0, length, tile), length]
    return [
        _Span(begin, end, max(0, begin - margin), min(length, end + margin)) for begin, end in itertools.pairwise(edges)
    ]


def encode_margin(blocks: Sequence[Any]) -> int:
    """How far, in latent points, a feature after `blocks` sees: each 3x3 layer adds one point of its own resolution."""
    reach, scale = 1, 1  # the first convolution
    for block in blocks:
        reach += 2 * _num_resnets(block) * scale
        if _halves(block):
            reach += 2 * scale
            scale *= 2
    return math.ceil(reach / scale)


def decode_margin(blocks: Sequence[Any]) -> int:
    """How far, in latent points, a pixel after `blocks` and the head sees."""
    reach, scale = 0.0, 1.0
    for block in blocks:
        reach += 2 * _num_resnets(block) * scale
        if _halves(block):
            scale /= 2
            reach += 2 * scale  # the convolution after the upsampling, and the rounding of nearest neighbours
    return math.ceil(reach + scale)


def _chunks(frames: int, first: bool) -> list[int]:
    return [1] * first + [GROUP_FRAMES] * ((frames - first) // GROUP_FRAMES)


def _part(*modules: Any) -> _Part:
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    cached = sum(isinstance(inner, WanCausalConv3d) for module in modules for inner in module.modules())
    return _Part(tuple(_layer(module) for module in modules), cached)


def _layer(module: Any) -> _Layer:
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanCausalConv3d, WanResidualUpBlock

    if isinstance(module, WanCausalConv3d):
        return lambda x, cache, place, first: _cached_conv(module, x, cache, place)
    if isinstance(module, _Head):
        return lambda x, cache, place, first: _cached_conv(module.conv, module.activation(module.norm(x)), cache, place)
    if isinstance(module, WanAttentionBlock):
        return lambda x, cache, place, first: module(x)
    if isinstance(module, WanResidualUpBlock):
        return lambda x, cache, place, first: module(x, feat_cache=cache, feat_idx=place, first_chunk=first)
    return lambda x, cache, place, first: module(x, feat_cache=cache, feat_idx=place)


def _cached_conv(conv: Any, x: torch.Tensor, cache: _Cache, place: list[int]) -> torch.Tensor:
    """A causal convolution that goes on from the last two frames before `x`, as the blocks of diffusers do."""
    number, before = place[0], cache[place[0]]
    kept = x[:, :, -2:].clone()
    if kept.shape[2] < 2 and before is not None:
        kept = torch.cat([before[:, :, -1:], kept], dim=2)
    out: torch.Tensor = conv(x, before)
    cache[number] = kept
    place[0] += 1
    return out


def _num_resnets(block: Any) -> int:
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanResidualBlock

    return 1 if isinstance(block, WanResidualBlock) else len(getattr(block, "resnets", ()))


def _halves(block: Any) -> bool:
    """Whether a block changes the resolution at its end."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample

    if isinstance(block, WanResample):
        return True
    return any(getattr(block, name, None) is not None for name in ("downsampler", "upsampler", "upsamplers"))


def _with_ends(windows: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, tuple[bool, bool]]]:
    """Each window, and whether it is the first and whether it is the last."""
    waiting: torch.Tensor | None = None
    first = True
    for window in windows:
        if waiting is not None:
            yield waiting, (first, False)
            first = False
        waiting = window
    if waiting is not None:
        yield waiting, (first, True)


def _move(cache: _Cache, device: torch.device) -> None:
    for number, kept in enumerate(cache):
        if isinstance(kept, torch.Tensor):
            cache[number] = kept.to(device)
