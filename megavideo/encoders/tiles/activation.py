"""An activation that waits in host memory or in a mapped file while the next layer is computed tile by tile."""

from __future__ import annotations

import math
import os
import tempfile

import torch
from torch import nn

from megavideo.encoders.tiles.axes import Box, Size
from megavideo.errors import DataError

# Above so many bytes an activation is a mapped file, whose pages the kernel can write out and take back.
MEMORY_BYTES = 2**30


class ChannelMoments:
    """Mean and squared deviation of every channel, gathered tile by tile.

    Two sets are joined as in Chan, Golub and LeVeque 1979, in float64; unlike a sum of squares that loses nothing where
    the mean is far from zero.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.deviation = torch.zeros(channels, dtype=torch.float64)

    def add(self, values: torch.Tensor) -> None:
        """Take in values [1, C, T, H, W] that were not counted yet."""
        variance, mean = (
            moment.double().cpu() for moment in torch.var_mean(values[0].flatten(1).float(), dim=1, correction=0)
        )
        count = values[0, 0].numel()
        total = self.count + count
        step = mean - self.mean
        self.deviation += variance * count + step.square() * (self.count * count / total)
        self.mean += step * (count / total)
        self.count = total

    def affine(self, norm: nn.GroupNorm) -> tuple[torch.Tensor, torch.Tensor]:
        """Factor and summand [C] in float32 by which `norm`, which has weights, normalises what was counted."""
        means = self.mean.view(norm.num_groups, -1)
        mean = means.mean(1, keepdim=True)
        within = self.deviation.view(norm.num_groups, -1).mean(1, keepdim=True) / self.count
        variance = within + (means - mean).square().mean(1, keepdim=True)
        factor = (variance + norm.eps).rsqrt().expand_as(means).flatten() * norm.weight.double().cpu()
        summand = norm.bias.double().cpu() - mean.expand_as(means).flatten() * factor
        return factor.float(), summand.float()


class Activation:
    """Values [1, C, T, H, W] on the host, and the moments of each channel once they are written."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self.moments = ChannelMoments(values.shape[1])

    @classmethod
    def empty(cls, channels: int, size: Size, dtype: torch.dtype, memory_bytes: int = MEMORY_BYTES) -> Activation:
        """Room for an activation; DataError where it must be a file and the disk is full."""
        shape = (1, channels, *size)
        count = math.prod(shape)
        if count * dtype.itemsize <= memory_bytes:
            return cls(torch.empty(shape, dtype=dtype))
        return cls(_mapped(count, dtype).view(shape))

    @property
    def size(self) -> Size:
        """Frames, rows and columns."""
        frames, height, width = self.values.shape[2:]
        return frames, height, width

    def read(self, box: Box) -> torch.Tensor:
        """The values [1, C, ...] of a box, on the host."""
        return self.values[(slice(None), slice(None), *box)]

    def write(self, box: Box, values: torch.Tensor) -> None:
        """Put the values [1, C, ...] of a box in their place."""
        self.values[(slice(None), slice(None), *box)] = values.to(self.values.device)


def _mapped(count: int, dtype: torch.dtype) -> torch.Tensor:
    """`count` numbers in a file without a name, which goes with the tensor."""
    size_bytes = count * dtype.itemsize
    with tempfile.NamedTemporaryFile(prefix="megavideo-activation-") as file:
        try:
            # A hole in a mapped file that no disk space is left for would kill the process at the first write to it.
            os.posix_fallocate(file.fileno(), 0, size_bytes)
        except OSError as error:
            remedy = "set TMPDIR to a folder with more room, or take shorter or smaller clips"
            raise DataError(f"{file.name}: no {size_bytes} bytes for features ({error}). Remedy: {remedy}") from error
        return torch.from_file(file.name, shared=True, size=count, dtype=dtype)
