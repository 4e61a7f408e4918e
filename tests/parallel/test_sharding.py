"""Shards of parameters: the maps between a part and the whole agree with taking the part."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from megavideo.parallel.layers.sharding import WHOLE, Shard, mark_sharded, shard_of

# whole shape, dim, blocks, count: rows, fused rows, columns, biases, and fused columns
CASES = [
    *(((24, 5), 0, blocks, count) for blocks in (1, 2, 3) for count in (1, 2, 4)),
    *(((36, 2), 0, blocks, 3) for blocks in (1, 2, 3)),
    *(((5, 24), 1, 1, count) for count in (1, 2, 3, 4)),
    *(((24,), 0, blocks, count) for blocks in (1, 3) for count in (1, 2, 4)),
    *(((3, 12, 2), 1, blocks, 2) for blocks in (1, 2, 3)),
]


def whole_of(shape: tuple[int, ...]) -> torch.Tensor:
    """A parameter whose elements are told apart."""
    return torch.arange(torch.Size(shape).numel()).view(shape) + 100


@pytest.mark.parametrize(("shape", "dim", "blocks", "count"), CASES)
def test_positions_agree_with_taking_the_part(shape: tuple[int, ...], dim: int, blocks: int, count: int) -> None:
    whole = whole_of(shape)
    every = torch.arange(whole.numel())
    owners = torch.zeros(whole.numel(), dtype=torch.int64)
    for index in range(count):
        shard = Shard(dim, blocks, index, count)
        part = shard.take(whole)
        assert part.shape == shard.local_shape(shape)
        assert shard.whole_shape(part.shape) == shape
        positions = shard.whole_positions(shape, 0, part.numel())
        assert torch.equal(whole.flatten()[positions], part.flatten())
        assert (positions.diff() > 0).all()  # a part keeps the order of the whole
        for start, numel in ((0, 1), (2, 4), (part.numel() - 2, 2), (5, 0)):
            assert torch.equal(shard.whole_positions(shape, start, numel), positions[start : start + numel])

        local = shard.local_positions(shape, every)
        assert torch.equal(local[positions], torch.arange(part.numel()))
        elsewhere = torch.ones_like(every, dtype=torch.bool)
        elsewhere[positions] = False
        assert (local[elsewhere] == -1).all()
        owners += ~elsewhere
    assert (owners == 1).all()  # the parts cover the whole once


def test_each_stacked_block_is_cut_by_itself() -> None:
    fused = torch.tensor([10, 11, 12, 13, 20, 21, 22, 23, 30, 31, 32, 33])
    assert Shard(0, 3, 1, 2).take(fused).tolist() == [12, 13, 22, 23, 32, 33]
    assert Shard(0, 1, 1, 2).take(fused).tolist() == [22, 23, 30, 31, 32, 33]


def test_only_marked_parameters_are_sharded() -> None:
    parameter = nn.Parameter(torch.zeros(4, 2))
    assert shard_of(parameter, 1, 2) == WHOLE
    mark_sharded(parameter, 0, 2)
    assert shard_of(parameter, 1, 2) == Shard(0, 2, 1, 2)
