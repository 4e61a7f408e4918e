"""What a ring sends, and the pieces of its attention; the exchange itself is proven by tests/parity."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from megavideo.model.attention import Segments, attend_varlen, attend_varlen_backward
from megavideo.parallel.layers.ring import _merge, shared_runs


def _random_bounds(seed: int, tokens: int) -> list[int]:
    draw = random.Random(seed)
    cuts = sorted(draw.sample(range(1, tokens), draw.randint(0, 5)))
    return [0, *cuts, cuts[-1] if cuts else tokens]  # an unused segment, and a tail of no segment


@pytest.mark.parametrize("seed", range(30))
def test_runs_share_exactly_the_tokens_of_their_common_segment(seed: int) -> None:
    ranks, run = 4, 6
    bounds = _random_bounds(seed, ranks * run)
    segment_of = {token: i for i, (b, e) in enumerate(itertools.pairwise(bounds)) for token in range(b, e)}
    for mine, other in itertools.permutations(range(ranks), 2):
        own = [t for t in range(mine * run, (mine + 1) * run) if t in segment_of]
        theirs = [t for t in range(other * run, (other + 1) * run) if t in segment_of]
        common = {segment_of[t] for t in own} & {segment_of[t] for t in theirs}
        found = shared_runs(bounds, run, mine, other)
        assert len(common) <= 1
        if not common:
            assert found is None
            continue
        assert found is not None
        expected = [[t - rank * run for t in tokens if segment_of[t] in common]
                    for rank, tokens in ((mine, own), (other, theirs))]  # fmt: skip
        assert [list(range(part.start, part.stop)) for part in found] == expected


def test_every_layer_has_the_bounds_that_the_first_one_fetched() -> None:
    """Where they lie on a device, each fetch waits until it has done all that it was given."""
    segments = Segments(torch.tensor([0, 5, 9], dtype=torch.int32), (), 9)
    assert segments.host_bounds() == (0, 5, 9)
    assert segments.host_bounds() is segments.host_bounds()


def _attention(shape: tuple[int, int, int], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4)]


def test_parts_merged_by_log_sum_exp_are_the_attention_over_all_keys() -> None:
    """Three uneven parts of the keys, forward and backward, against one call over all of them, in float64."""
    query, key, value, grad = _attention((13, 2, 8), seed=1)
    whole = Segments.of(torch.tensor([0, 13], dtype=torch.int32), 13)
    expected, expected_lse = attend_varlen(query, key, value, whole, whole)
    cuts = [(0, 2), (2, 9), (9, 13)]
    out = lse = None
    for begin, end in cuts:
        keys = Segments.of(torch.tensor([0, end - begin], dtype=torch.int32), end - begin)
        part = attend_varlen(query, key[begin:end], value[begin:end], whole, keys)
        out, lse = part if out is None or lse is None else _merge(out, lse, *part)
    assert out is not None and lse is not None
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)

    inputs = [t.clone().requires_grad_() for t in (query, key, value)]
    attend_varlen(inputs[0], inputs[1], inputs[2], whole, whole)[0].backward(grad)
    found = [torch.zeros_like(t) for t in (query, key, value)]
    for begin, end in cuts:
        keys = Segments.of(torch.tensor([0, end - begin], dtype=torch.int32), end - begin)
        parts = (query, key[begin:end], value[begin:end])
        dq, dk, dv = attend_varlen_backward(grad, parts, out, lse, whole, keys)
        found[0] += dq
        found[1][begin:end] = dk
        found[2][begin:end] = dv
    for mine, reference in zip(found, inputs, strict=True):
        torch.testing.assert_close(mine, reference.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_of_nothing_but_padding_has_zero_gradients_and_not_none(dtype: torch.dtype) -> None:
    """A rank whose parameters had no gradient would fall out of step with the others' reductions."""
    segments = Segments.of(torch.tensor([0, 4, 4], dtype=torch.int32), 12).clipped(8, 12)
    text = Segments.of(torch.tensor([0, 3, 3], dtype=torch.int32), 3)
    query = torch.randn(4, 2, 8).to(dtype).requires_grad_()
    key, value = (torch.randn(3, 2, 8).to(dtype).requires_grad_() for _ in range(2))
    out, _ = attend_varlen(query, key, value, segments, text)
    assert not out.any()
    out.sum().backward()
    for tensor in (query, key, value):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_clipped_segments_cover_the_run() -> None:
    segments = Segments.of(torch.tensor([0, 5, 11, 11], dtype=torch.int32), 16)
    assert segments.clipped(4, 8).bounds == (0, 1, 4, 4)
    assert segments.clipped(4, 8).cu_seqlens.tolist() == [0, 1, 4, 4]
    assert segments.clipped(12, 16).bounds == (0, 0, 0, 0)
