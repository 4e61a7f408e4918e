"""`AutoencoderKLCogVideoX` layer by layer.

The class works on a few frames at a time: each batch of frames is normalised by itself, and its convolutions go on from
the last two frames before it. These batches are part of what it computes, and are kept; tiles are cut in space only.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from megavideo.encoders.tiles.activation import Activation
from megavideo.encoders.tiles.axes import Axis, Box
from megavideo.encoders.tiles.layer import Compute, Layer, LayerRunner, group_norm

_CACHED_FRAMES = 2


def encode(model: Any, runner: LayerRunner, video: Activation) -> Activation:
    """Moments [1, 2C, t, h, w] of a video [1, 3, T, H, W]."""
    caches = _Caches(runner)
    done = []
    for batch in _frame_batches(video.values, model.num_sample_frames_batch_size):
        x = _encoded(model.encoder, caches, batch)
        done.append(x if model.quant_conv is None else runner.run(_pointwise(model.quant_conv, x), x))
    return _joined(done, runner)


def decode(model: Any, runner: LayerRunner, latent: Activation) -> Activation:
    """Video [1, 3, T, H, W] of a raw latent [1, C, t, h, w]; of an even t with more frames (`families.own_frames`)."""
    caches = _Caches(runner)
    done = []
    for batch in _frame_batches(latent.values, model.num_latent_frames_batch_size):
        post = model.post_quant_conv
        x = batch if post is None else runner.run(_pointwise(post, batch), batch)
        done.append(_decoded(model.decoder, caches, x))
    return _joined(done, runner)


class _Caches:
    """The last frames before a batch that each convolution goes on from."""

    def __init__(self, runner: LayerRunner) -> None:
        self.runner = runner
        self._kept: dict[Any, Activation] = {}

    def conv(self, conv: Any, x: Activation, first: Compute | None = None, **more: Any) -> Activation:
        """A causal 3x3x3 convolution of what `first` makes of `x`; `more` as for `LayerRunner.run`."""
        _, height, width = x.size
        before = self._kept.pop(conv, None)
        after = self.runner.empty(conv.conv.in_channels, (_CACHED_FRAMES, height, width))

        def compute(tile: torch.Tensor, box: Box) -> torch.Tensor:
            place = (slice(0, _CACHED_FRAMES), *box[1:])
            cache = None if before is None else self.runner.to_device(before.read(place))
            done, kept = conv(tile if first is None else first(tile, box), conv_cache=cache)
            after.write(place, kept)
            return done

        out = self.runner.run(Layer(compute, _time(x), Axis(before=1, after=1)), x, **more)
        self._kept[conv] = after
        return out


def _encoded(encoder: Any, caches: _Caches, video: Activation) -> Activation:
    x = caches.conv(encoder.conv_in, video)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            x = _resnet(caches, resnet, x)
        for downsampler in block.downsamplers or ():
            layer = Layer(
                partial(_apply, downsampler),
                _time(x, down=2 if downsampler.compress_time else 1),
                Axis(down=2, before=1, after=1),
            )
            x = caches.runner.run(layer, x)
    for resnet in encoder.mid_block.resnets:
        x = _resnet(caches, resnet, x)
    return caches.conv(encoder.conv_out, x, group_norm(encoder.norm_out, x, encoder.conv_act))


def _decoded(decoder: Any, caches: _Caches, latent: Activation) -> Activation:
    x = caches.conv(decoder.conv_in, latent)
    for resnet in decoder.mid_block.resnets:
        x = _resnet(caches, resnet, x, latent)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _resnet(caches, resnet, x, latent)
        for upsampler in block.upsamplers or ():
            layer = Layer(
                partial(_apply, upsampler),
                _time(x, up=2 if upsampler.compress_time else 1),
                Axis(up=2, before=1, after=1),
            )
            x = caches.runner.run(layer, x)
    norm = _spatial_norm(decoder.norm_out, x, latent, caches.runner, decoder.conv_act)
    return caches.conv(decoder.conv_out, x, norm)


def _resnet(caches: _Caches, block: Any, x: Activation, latent: Activation | None = None) -> Activation:
    def norm(module: Any, of: Activation) -> Compute:
        if latent is None:
            return group_norm(module, of, block.nonlinearity)
        return _spatial_norm(module, of, latent, caches.runner, block.nonlinearity)

    inner = caches.conv(block.conv1, x, norm(block.norm1, x))
    by = block.conv_shortcut if block.in_channels != block.out_channels else None
    return caches.conv(block.conv2, inner, norm(block.norm2, inner), plus=x, by=by)


def _spatial_norm(module: Any, x: Activation, latent: Activation, runner: LayerRunner, activation: Any) -> Compute:
    """`CogVideoXSpatialNorm3D`: a group norm whose factor and summand come from the latent point underneath.

    They are made at the latent's resolution and repeated, which is the same as the other way about.
    """
    norm = group_norm(module.norm_layer, x)
    frames, height, _ = x.size
    over = height // latent.size[1]
    times = torch.tensor(_nearest_frames(frames, latent.size[0]))

    def compute(tile: torch.Tensor, box: Box) -> torch.Tensor:
        rows, columns = (torch.arange(part.start, part.stop) // over for part in box[1:])
        top, bottom, left, right = (int(end) for part in (rows, columns) for end in (part[0], part[-1] + 1))
        under = (slice(0, latent.size[0]), slice(top, bottom), slice(left, right))
        points = runner.to_device(latent.read(under))
        index = (times[:, None, None], (rows - top)[:, None], columns - left)
        factor, summand = (conv(points)[0][:, :, *index] for conv in (module.conv_y, module.conv_b))
        done: torch.Tensor = activation(norm(tile, box) * factor + summand)
        return done

    return compute


def _nearest_frames(frames: int, latent_frames: int) -> list[int]:
    """For each of so many frames, the latent frame underneath; of an odd number the first stands alone."""
    if frames > 1 and frames % 2:
        return [0, *(1 + frame * (latent_frames - 1) // (frames - 1) for frame in range(frames - 1))]
    return [frame * latent_frames // frames for frame in range(frames)]


def _frame_batches(values: torch.Tensor, length: int) -> Iterator[Activation]:
    """Runs of `length` frames as the class takes them: what is left over goes with the first."""
    frames = values.shape[2]
    begin = 0
    for end in range(length + frames % length if frames >= length else frames, frames + 1, length):
        yield Activation(values[:, :, begin:end])
        begin = end


def _joined(batches: list[Activation], runner: LayerRunner) -> Activation:
    """The batches one after another in time."""
    _, height, width = batches[0].size
    out = runner.empty(batches[0].values.shape[1], (sum(batch.size[0] for batch in batches), height, width))
    begin = 0
    for batch in batches:
        end = begin + batch.size[0]
        out.write((slice(begin, end), slice(None), slice(None)), batch.values)
        begin = end
    return out


def _time(x: Activation, up: int = 1, down: int = 1) -> Axis:
    return Axis(up, down, first_alone=x.size[0] % 2 == 1)


def _pointwise(module: Any, x: Activation) -> Layer:
    return Layer(partial(_apply, module), _time(x))


def _apply(module: Any, tile: torch.Tensor, box: Box) -> torch.Tensor:
    done: torch.Tensor = module(tile)
    return done
