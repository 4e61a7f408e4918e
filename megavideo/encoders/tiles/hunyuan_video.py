"""`AutoencoderKLHunyuanVideo` layer by layer.

Its group norms look at the whole clip, and in the middle every point attends to all of its frame and the earlier ones.
"""

from __future__ import annotations

from typing import Any

import torch

from megavideo.encoders.tiles.activation import Activation
from megavideo.encoders.tiles.axes import Axis, Box
from megavideo.encoders.tiles.causal_attention import frame_causal_attention
from megavideo.encoders.tiles.layer import Compute, Layer, LayerRunner, group_norm


def encode(model: Any, runner: LayerRunner, video: Activation) -> Activation:
    """Moments [1, 2C, t, h, w] of a video [1, 3, T, H, W]."""
    encoder = model.encoder
    x = runner.run(_conv(encoder.conv_in), video)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            x = _resnet(runner, resnet, x)
        for downsampler in block.downsamplers or ():
            x = runner.run(_downsampler(downsampler), x)
    x = _middle(runner, encoder.mid_block, x)
    x = runner.run(_conv(encoder.conv_out, group_norm(encoder.conv_norm_out, x, encoder.conv_act)), x)
    return runner.run(_pointwise(model.quant_conv), x)


def decode(model: Any, runner: LayerRunner, latent: Activation) -> Activation:
    """Video [1, 3, T, H, W] of a raw latent [1, C, t, h, w]."""
    decoder = model.decoder
    x = runner.run(_pointwise(model.post_quant_conv), latent)
    x = runner.run(_conv(decoder.conv_in), x)
    x = _middle(runner, decoder.mid_block, x)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _resnet(runner, resnet, x)
        for upsampler in block.upsamplers or ():
            x = runner.run(_upsampler(upsampler), x)
    return runner.run(_conv(decoder.conv_out, group_norm(decoder.conv_norm_out, x, decoder.conv_act)), x)


def _resnet(runner: LayerRunner, block: Any, x: Activation) -> Activation:
    inner = runner.run(_conv(block.conv1, group_norm(block.norm1, x, block.nonlinearity)), x)
    layer = _conv(block.conv2, group_norm(block.norm2, inner, block.nonlinearity))
    return runner.run(layer, inner, plus=x, by=block.conv_shortcut)


def _middle(runner: LayerRunner, block: Any, x: Activation) -> Activation:
    x = _resnet(runner, block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            x = _attention(runner, attention, x)
        x = _resnet(runner, resnet, x)
    return x


def _attention(runner: LayerRunner, attention: Any, x: Activation) -> Activation:
    assert attention.heads == 1
    norm = group_norm(attention.group_norm, x)

    def joined(tile: torch.Tensor, box: Box) -> torch.Tensor:
        last = norm(tile, box).movedim(1, -1)
        parts = [part(last) for part in (attention.to_q, attention.to_k, attention.to_v)]
        return torch.cat(parts, -1).movedim(-1, 1)

    def projected(tile: torch.Tensor, box: Box) -> torch.Tensor:
        # contiguous as the class has it: of other inputs torch rounds the product before it adds the bias
        done: torch.Tensor = attention.to_out[0](tile.movedim(1, -1).contiguous())
        return done.movedim(-1, 1)

    mixed = frame_causal_attention(runner.run(Layer(joined), x), runner)
    return runner.run(Layer(projected), mixed, plus=x)


def _pointwise(module: Any) -> Layer:
    return Layer(lambda tile, box: module(tile))


def _conv(conv: Any, first: Compute | None = None) -> Layer:
    """A causal 3x3x3 convolution, of what `first` makes of its input."""
    return Layer(
        lambda tile, box: conv(tile if first is None else first(tile, box)),
        time=Axis(before=2, first_alone=True),
        space=Axis(before=1, after=1),
    )


def _downsampler(module: Any) -> Layer:
    time, space, _ = module.conv.conv.stride
    return Layer(
        lambda tile, box: module(tile),
        time=Axis(down=time, before=2, first_alone=True),
        space=Axis(down=space, before=1, after=1),
    )


def _upsampler(module: Any) -> Layer:
    time, space, _ = module.upsample_factor
    return Layer(
        lambda tile, box: module(tile),
        time=Axis(up=time, before=2, first_alone=True),
        space=Axis(up=space, before=1, after=1),
    )
