"""Which part of a parameter a tensor-parallel rank holds, and where its elements lie in the whole.

A sharded parameter is cut along one dim, either in one piece or, where equal matrices are stacked in it (a fused QKV),
each of them by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

# the attributes by which megatron-core marks a sharded parameter, and DeepSpeed knows one when it forms norms
_IS_SHARDED, _DIM, _BLOCKS = "tensor_model_parallel", "partition_dim", "partition_stride"


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count` along `dim`, in which `blocks` equal matrices are stacked; by default the whole."""

    dim: int = 0
    blocks: int = 1
    index: int = 0
    count: int = 1

    def local_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the part of a parameter of whole `shape`."""
        return tuple(size // self.count if dim == self.dim else size for dim, size in enumerate(shape))

    def whole_shape(self, local_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the whole parameter of which a part has `local_shape`."""
        return tuple(size * self.count if dim == self.dim else size for dim, size in enumerate(local_shape))

    def take(self, whole: torch.Tensor) -> torch.Tensor:
        """This part of a whole parameter."""
        return whole if self.count == 1 else torch.cat(self.pieces(whole), dim=self.dim)

    def pieces(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Views of a whole parameter that make this part, one after the other along `dim`."""
        if self.count == 1:
            return [whole]
        blocks = whole.chunk(self.blocks, dim=self.dim)
        return [block.chunk(self.count, dim=self.dim)[self.index] for block in blocks]

    def whole_positions(self, shape: Sequence[int], start: int, numel: int) -> torch.Tensor:
        """Positions in the flattened whole of elements [start, start + numel) of the flattened part: int64 [numel]."""
        local = torch.arange(start, start + numel)
        if self.count == 1:
            return local
        length, inner = shape[self.dim], _inner(shape, self.dim)
        piece = length // self.blocks // self.count  # of one block along dim
        outer, rest = local // (piece * self.blocks * inner), local % (piece * self.blocks * inner)
        along, tail = rest // inner, rest % inner
        block, offset = along // piece, along % piece
        row = block * (length // self.blocks) + self.index * piece + offset
        return (outer * length + row) * inner + tail

    def local_positions(self, shape: Sequence[int], whole: torch.Tensor) -> torch.Tensor:
        """Positions in the flattened part of positions of the flattened whole: int64, -1 for those in other parts."""
        if self.count == 1:
            return whole
        length, inner = shape[self.dim], _inner(shape, self.dim)
        piece = length // self.blocks // self.count
        outer, rest = whole // (length * inner), whole % (length * inner)
        row, tail = rest // inner, rest % inner
        block, in_block = row // (length // self.blocks), row % (length // self.blocks)
        local = ((outer * self.blocks + block) * piece + in_block - self.index * piece) * inner + tail
        return torch.where(in_block // piece == self.index, local, -1)


WHOLE = Shard()


def mark_sharded(parameter: nn.Parameter, dim: int, blocks: int = 1) -> None:
    """Say of a parameter that it is one part of several along `dim`."""
    for name, value in ((_IS_SHARDED, True), (_DIM, dim), (_BLOCKS, blocks)):
        setattr(parameter, name, value)


def shard_of(parameter: torch.Tensor, index: int, count: int) -> Shard:
    """The part that a tensor-parallel rank `index` of `count` holds of a parameter."""
    if not getattr(parameter, _IS_SHARDED, False):
        return WHOLE
    return Shard(getattr(parameter, _DIM), getattr(parameter, _BLOCKS), index, count)


def part_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """Shape of the part that a tensor-parallel rank holds, of which ZeRO-3 may have left an empty tensor here."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _inner(shape: Sequence[int], dim: int) -> int:
    inner = 1
    for size in shape[dim + 1 :]:
        inner *= size
    return inner
