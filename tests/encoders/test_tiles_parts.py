"""The parts that exact tiles are made of: axes, statistics, attention a run at a time, and features in files."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from megavideo.encoders.tiles import causal_attention
from megavideo.encoders.tiles.activation import Activation, ChannelMoments
from megavideo.encoders.tiles.axes import Axis, cover
from megavideo.encoders.tiles.layer import LayerRunner
from megavideo.errors import DataError


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def nearest(axis: Axis, point: int, points: int) -> set[int]:
    """The input points that an output point lies over."""
    alone = int(axis.first_alone)
    if point < alone:
        return {0}
    if axis.up > 1:
        return {(point - alone) // axis.up + alone}
    return {alone + (point - alone) * axis.down + i for i in range(axis.down)}


@pytest.mark.parametrize("first_alone", [False, True])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (4, 1), (1, 4)])
def test_a_part_holds_what_lies_under_it_and_starts_with_it(up: int, down: int, first_alone: bool) -> None:
    axis = Axis(up, down, before=int(first_alone and down > 1), first_alone=first_alone)
    points = 4 * down + int(first_alone)
    length = axis.length(points)
    for begin in range(length):
        for end in range(begin + 1, length + 1):
            part, inside = axis.source(slice(begin, end), points)
            under = set().union(*(nearest(axis, point, points) for point in range(begin, end)))
            assert under <= set(range(part.start, part.stop))
            # a part by itself gives points of its own, of which those wanted follow the skipped ones
            assert part.start * up // down + inside.start == begin
            assert inside.stop <= axis.length(part.stop - part.start)


def test_boxes_cover_each_point_once() -> None:
    count = torch.zeros(5, 7, 4, dtype=torch.int64)
    for box in cover((5, 7, 4), (2, 3, 8)):
        count[box] += 1
    assert bool((count == 1).all())


def test_statistics_of_tiles_are_those_of_the_whole() -> None:
    norm = nn.GroupNorm(2, 4)
    norm.weight.data.copy_(draw(4))
    values = draw(1, 4, 5, 6, 7) + 3000  # a sum of squares in float32 would keep no digit of the variance
    moments = ChannelMoments(4)
    for part in values.split(2, dim=2):
        moments.add(part)
    factor, summand = moments.affine(norm)
    found = values.double() * factor.double()[:, None, None, None] + summand.double()[:, None, None, None]
    expected = norm.double()(values.double())
    assert torch.allclose(found, expected, atol=2e-3)  # what 3000 leaves of float32


def test_attention_some_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_attention, "_QUERIES", 5)
    joined = 3 * draw(1, 3 * 8, 4, 3, 4)
    found = causal_attention.frame_causal_attention(
        Activation(joined), LayerRunner(nn.Linear(1, 1), (4, 3, 4), 8, None)
    )
    query, key, value = (part.flatten(2).transpose(1, 2) for part in joined.chunk(3, dim=1))
    frame = torch.arange(4).repeat_interleave(12)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=frame[None, :] <= frame[:, None])
    assert torch.allclose(found.values.flatten(2).transpose(1, 2), expected, atol=1e-5)


def test_features_wait_in_a_file_that_goes_with_them() -> None:
    kept = Activation.empty(2, (3, 4, 5), torch.bfloat16, memory_bytes=0)
    assert kept.values.untyped_storage().filename is not None
    box = (slice(1, 3), slice(0, 2), slice(2, 5))
    kept.write(box, torch.ones(1, 2, 2, 2, 3))
    assert kept.read(box).sum() == 24


def test_a_full_disk_is_named() -> None:
    with pytest.raises(DataError, match=r"bytes for features.*TMPDIR"):
        Activation.empty(2**20, (2**10, 2**10, 2**10), torch.float32, memory_bytes=0)
