"""`AutoencoderKLLTXVideo` layer by layer.

Its norms look at one point, so that all its layers could be run on one tile with a margin; but they see so far that the
margin would be most of the work. For one residual block at a time it is two points.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from megavideo.encoders.tiles.activation import Activation
from megavideo.encoders.tiles.axes import Axis, Box
from megavideo.encoders.tiles.layer import Compute, Layer, LayerRunner


def encode(model: Any, runner: LayerRunner, video: Activation) -> Activation:
    """Moments [1, 2C, t, h, w] of a video [1, 3, T, H, W]; one log variance for all channels, repeated."""
    encoder = model.encoder
    patch = encoder.patch_size
    first = Layer(
        lambda tile, box: encoder.conv_in(_patchified(tile, patch)),
        _time(encoder.conv_in),
        Axis(down=patch, before=1, after=1),
    )
    x = runner.run(first, video)
    for block in encoder.down_blocks:
        x = _resnets(runner, block.resnets, x)
        for downsampler in block.downsamplers or ():
            x = runner.run(_downsampler(downsampler), x)
        if getattr(block, "conv_out", None) is not None:
            x = _resnets(runner, [block.conv_out], x)
    x = _resnets(runner, encoder.mid_block.resnets, x)

    def head(tile: torch.Tensor, box: Box) -> torch.Tensor:
        found = encoder.conv_out(encoder.conv_act(_normed(encoder.norm_out, tile)))
        return torch.cat([found, found[:, -1:].expand(-1, found.shape[1] - 2, -1, -1, -1)], 1)

    return runner.run(Layer(head, _time(encoder.conv_out), Axis(before=1, after=1)), x)


def decode(model: Any, runner: LayerRunner, latent: Activation) -> Activation:
    """Video [1, 3, T, H, W] of a raw latent [1, C, t, h, w], which is told to be free of noise."""
    decoder = model.decoder
    step = None if decoder.timestep_scale_multiplier is None else torch.zeros(1, device=runner.device)
    x = runner.run(Layer(partial(_apply, decoder.conv_in), _time(decoder.conv_in), Axis(before=1, after=1)), latent)
    x = _resnets(runner, decoder.mid_block.resnets, x, _embedded(decoder.mid_block, step, runner))
    for block in decoder.up_blocks:
        if block.conv_in is not None:
            x = _resnets(runner, [block.conv_in], x, step)
        for upsampler in block.upsamplers or ():
            x = runner.run(_upsampler(upsampler), x)
        x = _resnets(runner, block.resnets, x, _embedded(block, step, runner))
    step = _embedded(decoder, step, runner)
    scaled = None if step is None else (step.unflatten(1, (2, -1)) + _over_points(decoder.scale_shift_table)).unbind(1)

    def head(tile: torch.Tensor, box: Box) -> torch.Tensor:
        found = _normed(decoder.norm_out, tile)
        if scaled is not None:
            found = found * (1 + scaled[1]) + scaled[0]
        return _unpatchified(decoder.conv_out(decoder.conv_act(found)), decoder.patch_size)

    return runner.run(Layer(head, _time(decoder.conv_out), Axis(up=decoder.patch_size, before=1, after=1)), x)


def _resnets(runner: LayerRunner, blocks: Iterable[Any], x: Activation, step: torch.Tensor | None = None) -> Activation:
    for block in blocks:
        layer = Layer(_resnet(block, runner, x, step), _time(block.conv1, 2), Axis(before=2, after=2))
        x = runner.run(layer, x)
    return x


def _resnet(block: Any, runner: LayerRunner, x: Activation, step: torch.Tensor | None) -> Compute:
    """`LTXVideoResnetBlock3d` on a tile; noise that it adds is drawn for the picture as a whole, as the class does."""
    table = None
    if block.scale_shift_table is not None:
        assert step is not None
        # shift and scale of the first half, then of the second
        table = (step.unflatten(1, (4, -1)) + _over_points(block.scale_shift_table)).unbind(1)
    strengths = (block.per_channel_scale1, block.per_channel_scale2)
    noises = [
        None if strength is None else torch.randn(x.size[1:], device=runner.device, dtype=runner.dtype)
        for strength in strengths
    ]
    halves = ((block.norm1, block.conv1), (block.norm2, block.conv2))

    def compute(tile: torch.Tensor, box: Box) -> torch.Tensor:
        hidden = tile
        for half, (norm, conv) in enumerate(halves):
            hidden = _normed(norm, hidden)
            if table is not None:
                hidden = hidden * (1 + table[2 * half + 1]) + table[2 * half]
            hidden = conv(block.nonlinearity(hidden))
            noise = noises[half]
            if noise is not None:
                hidden = hidden + noise[box[1:]] * strengths[half][:, None]
        aside = tile if block.norm3 is None else _normed(block.norm3, tile)
        return hidden + (aside if block.conv_shortcut is None else block.conv_shortcut(aside))

    return compute


def _embedded(owner: Any, step: torch.Tensor | None, runner: LayerRunner) -> torch.Tensor | None:
    """The owner's embedding [1, D, 1, 1, 1] of a noise level [1] that is zero."""
    if owner.time_embedder is None or step is None:
        return None
    found: torch.Tensor = owner.time_embedder(
        timestep=step, resolution=None, aspect_ratio=None, batch_size=1, hidden_dtype=runner.dtype
    )
    return found.view(1, -1, 1, 1, 1)


def _downsampler(module: Any) -> Layer:
    conv = module if hasattr(module, "is_causal") else module.conv
    time, space = _strides(module.conv.stride if conv is module else module.stride)
    return Layer(partial(_apply, module), _time(conv, down=time), Axis(down=space, before=1, after=1))


def _upsampler(module: Any) -> Layer:
    time, space = _strides(module.stride)
    return Layer(partial(_apply, module), _time(module.conv, up=time), Axis(up=space, before=1, after=1))


def _strides(stride: tuple[int, int, int]) -> tuple[int, int]:
    return stride[0], stride[1]


def _time(conv: Any, count: int = 1, up: int = 1, down: int = 1) -> Axis:
    """The frames that `count` convolutions like `conv` see, one after another."""
    before, after = (2, 0) if conv.is_causal else (1, 1)
    return Axis(up, down, before * count, after * count, first_alone=True)


def _normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    done: torch.Tensor = norm(x.movedim(1, -1)).movedim(-1, 1)
    return done


def _over_points(table: torch.Tensor) -> torch.Tensor:
    return table[None, ..., None, None, None]


def _patchified(x: torch.Tensor, patch: int) -> torch.Tensor:
    """[1, C p p, T, H / p, W / p] of [1, C, T, H, W], columns of a patch before its rows as the class has them."""
    x = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def _unpatchified(x: torch.Tensor, patch: int) -> torch.Tensor:
    x = x.unflatten(1, (-1, patch, patch))
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


def _apply(module: Any, tile: torch.Tensor, box: Box) -> torch.Tensor:
    done: torch.Tensor = module(tile)
    return done
