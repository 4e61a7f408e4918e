"""Attention inside segments against a dense float64 softmax with a block-diagonal mask."""

from __future__ import annotations

import pytest
import torch

from megavideo.model.attention.cpu_flash import CPU_FLASH
from megavideo.model.attention.segments import Segments
from tests.model.packs import cumulative

HEADS, HEAD_WIDTH = 3, 16
# (query lengths, tail of queries, key lengths, tail of keys)
CASES = {
    "one segment": ([13], 0, [13], 0),
    "several": ([5, 1, 20], 0, [5, 1, 20], 0),
    "empty segments and a tail": ([0, 7, 0, 9, 0], 6, [0, 7, 0, 9, 0], 6),
    "cross attention": ([12, 3, 8], 5, [2, 9, 1], 4),
    "cross attention with unused segments": ([12, 0, 8, 0], 0, [2, 4, 1, 0], 7),
    "segments without keys": ([3, 5, 6], 2, [4, 0, 7], 3),
    "no keys at all": ([3, 5], 2, [0, 0], 4),
    "no queries at all": ([0, 0], 3, [2, 5], 1),
}


def tensors(num_queries: int, num_keys: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Query, key and value that ask for a gradient."""
    generator = torch.Generator().manual_seed(5)
    sizes = (num_queries, num_keys, num_keys)
    made = [torch.randn(size, HEADS, HEAD_WIDTH, generator=generator, dtype=torch.float64) for size in sizes]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def segments_of(lengths: list[int], count: int) -> Segments:
    """Segments of the lengths, and unused ones up to `count`."""
    return Segments.of(cumulative(lengths, count).tolist())


def owner(lengths: list[int], tail: int, nobody: int) -> torch.Tensor:
    """Segment of each token; `nobody` for those of the tail."""
    numbers = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return torch.cat([numbers, torch.full((tail,), nobody)])


def dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, allowed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [N, A, h] and log-sum-exp [A, N] in float64, as if over no keys for queries that may see nothing."""
    query, key, value = query.double(), key.double(), value.double()
    scores = torch.einsum("nah,mah->anm", query, key) / HEAD_WIDTH**0.5
    seeing = allowed.any(1)
    scores = scores.masked_fill(~allowed, -torch.inf)[:, seeing]
    out = torch.zeros_like(query)
    out[seeing] = torch.einsum("anm,mah->nah", scores.softmax(-1), value)
    lse = query.new_full((HEADS, query.shape[0]), -torch.inf)
    lse[:, seeing] = scores.logsumexp(-1)
    return out, lse


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_forward_log_sum_exp_and_backward(case: str, dtype: torch.dtype) -> None:
    query_lengths, query_tail, key_lengths, key_tail = CASES[case]
    num_queries, num_keys = sum(query_lengths) + query_tail, sum(key_lengths) + key_tail
    query, key, value = tensors(num_queries, num_keys, dtype)
    count = len(query_lengths)
    out, lse = CPU_FLASH(
        query,
        key,
        value,
        segments_of(query_lengths, count),
        segments_of(key_lengths, count),
    )
    allowed = owner(query_lengths, query_tail, -1)[:, None] == owner(key_lengths, key_tail, -2)[None]
    expected, expected_lse = dense(query, key, value, allowed)
    expected_lse[:, sum(query_lengths) :] = 0  # tokens of no segment
    assert out.dtype == lse.dtype == dtype
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-11}
    torch.testing.assert_close(out.double(), expected, **close)
    torch.testing.assert_close(lse.double(), expected_lse, **close)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    actual = torch.autograd.grad((out.double() * weight).sum(), (query, key, value))
    wanted = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    for ours, theirs in zip(actual, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **{name: 10 * tolerance for name, tolerance in close.items()})


def test_a_segment_does_not_see_the_others() -> None:
    lengths = [6, 10]
    segments = segments_of(lengths, 2)
    query, key, value = tensors(16, 16, torch.float32)
    before = CPU_FLASH(query, key, value, segments, segments)[0][:6]
    with torch.no_grad():
        key[6:] = 100.0
        value[6:] = torch.nan
    assert torch.equal(CPU_FLASH(query, key, value, segments, segments)[0][:6], before)


def test_a_pack_of_nothing_is_zero() -> None:
    segments = segments_of([], 3)
    out, lse = CPU_FLASH(*tensors(8, 8, torch.float32), segments, segments)
    assert out.shape == (8, HEADS, HEAD_WIDTH)
    assert lse.shape == (HEADS, 8)
    assert not out.any()
    assert not lse.any()


def test_segments_know_their_bounds_on_the_host() -> None:
    segments = segments_of([3, 4], 3)
    assert segments.bounds == (0, 3, 7, 7)
    assert segments.cu_seqlens.tolist() == [0, 3, 7, 7]
    assert segments.extent.tolist() == [7, 4]
