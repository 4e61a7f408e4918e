"""One layer over a whole activation, tile by tile: of the activation itself only a tile is on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from megavideo.encoders.tiles.activation import MEMORY_BYTES, Activation
from megavideo.encoders.tiles.axes import Axis, Box, Size, cover

# Of a tile of the input [1, C, T, H, W] on the device, and where it lies, the output.
Compute = Callable[[torch.Tensor, Box], torch.Tensor]

POINT, FRAME = Axis(), Axis(first_alone=True)
TILE_FRAMES = 16
# Coarse layers see smaller tiles; below this the margins would be most of the work.
_LEAST_FRAMES, _LEAST_SIDE = 4, 8


@dataclass(frozen=True)
class Layer:
    """What is computed from a tile, and how its axes lie; by default point for point."""

    compute: Compute
    time: Axis = FRAME
    space: Axis = POINT

    def size(self, size: Size) -> Size:
        """Frames, rows and columns of the output of an input of `size`."""
        frames, height, width = size
        return self.time.length(frames), self.space.length(height), self.space.length(width)

    def source(self, box: Box, size: Size) -> tuple[Box, Box]:
        """The part of an input of `size` that `box` of the output needs, and where `box` lies in what comes of it."""
        frames, rows, columns = box
        time = self.time.source(frames, size[0])
        vertical, horizontal = self.space.source(rows, size[1]), self.space.source(columns, size[2])
        return (time[0], vertical[0], horizontal[0]), (time[1], vertical[1], horizontal[1])


class LayerRunner:
    """Runs layers for a video of `size` pixels on tiles of `tile` pixels a side and `frames` frames (None: all).

    At a coarser layer a tile has as many fewer points, so that it covers the same part of the video.
    """

    def __init__(self, model: Any, size: Size, tile: int, frames: int | None, memory_bytes: int = MEMORY_BYTES) -> None:
        parameter = next(iter(model.parameters()))
        self.device, self.dtype = parameter.device, parameter.dtype
        self._size, self._tile, self._frames = size, tile, frames
        self._memory_bytes = memory_bytes

    def run(
        self, layer: Layer, x: Activation, plus: Activation | None = None, by: nn.Module | None = None
    ) -> Activation:
        """The layer's output for all of `x`, with its moments.

        `plus` is added to it, by way of a module without neighbours where `by` is given; otherwise the sum takes the
        place of `plus`, which is not to be used again.
        """
        size = layer.size(x.size)
        out = Activation(plus.values) if plus is not None and by is None else None
        for box in cover(size, self._tile_of(size)):
            source, inside = layer.source(box, x.size)
            done = layer.compute(self.to_device(x.read(source)), source)[(slice(None), slice(None), *inside)]
            if plus is not None:
                added = self.to_device(plus.read(box))
                done = done + (added if by is None else by(added))
            out = out or self.empty(done.shape[1], size)
            out.moments.add(done)
            out.write(box, done)
        assert out is not None
        return out

    def empty(self, channels: int, size: Size) -> Activation:
        """Room for an activation in the dtype of the weights."""
        return Activation.empty(channels, size, self.dtype, self._memory_bytes)

    def to_device(self, values: torch.Tensor) -> torch.Tensor:
        """Values where the weights are, and like them."""
        return values.to(self.device, self.dtype)

    def _tile_of(self, size: Size) -> Size:
        frames, height, _ = size
        pixels = max(1, self._size[1] // height)
        side = max(_LEAST_SIDE, self._tile // pixels)
        if self._frames is None:
            return frames, side, side
        return max(_LEAST_FRAMES, self._frames // -(-self._size[0] // frames)), side, side


def group_norm(norm: nn.GroupNorm, x: Activation, activation: nn.Module | None = None) -> Compute:
    """Normalise a tile of `x` by the statistics of all of `x`, as `norm` would the whole; then the activation."""
    factor, summand = (values[:, None, None, None].to(norm.weight.device) for values in x.moments.affine(norm))

    def compute(tile: torch.Tensor, box: Box) -> torch.Tensor:
        done = torch.addcmul(summand, tile.float(), factor).to(tile.dtype)
        return done if activation is None else activation(done)

    return compute
