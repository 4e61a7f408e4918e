"""Communication per GPU: the table of known costs, its limits, and costs counted hop by hop."""

from __future__ import annotations

import pytest

from megavideo.config.layout import parse_layout
from megavideo.errors import ConfigError
from megavideo.planning.communication import (
    LayerBytes,
    layer_bytes,
    packed_ring_bytes,
    pipeline_bytes,
    ring_bytes,
    tensor_parallel_bytes,
    text_bytes,
    ulysses_bytes,
    zero_bytes,
)

BF16, FP32 = 2, 4
TOKENS, TEXT, WIDTH, HEADS = 32_768, 512, 5120, 40
PARAMETERS = 14_288_000_000


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_table_of_a_layer_in_bf16(ranks: int) -> None:
    s, d, others = TOKENS, WIDTH, ranks - 1
    assert tensor_parallel_bytes(s, d, ranks, BF16) == 15 * s * d * 2 * others // ranks
    assert ring_bytes(s, d, ranks, BF16) == 12 * s * d * others // ranks
    assert ulysses_bytes(s, d, ranks, BF16) == 16 * (s // ranks) * d * others // ranks


@pytest.mark.parametrize(("stage", "per_parameter"), [(0, 4), (1, 4), (2, 4), (3, 6)])
def test_table_of_zero_is_the_limit_of_many_ranks(stage: int, per_parameter: int) -> None:
    sent = [zero_bytes(PARAMETERS, stage, BF16, dp) for dp in (1, 2, 8, 1024)]
    assert sent[0] == 0
    assert sent[1] == per_parameter * PARAMETERS // 2
    assert sent == sorted(sent)
    assert sent[3] == pytest.approx(per_parameter * PARAMETERS, rel=1e-3)


def test_table_of_a_pipeline_boundary() -> None:
    cp, tp = 2, 4
    assert pipeline_bytes(TOKENS // (cp * tp), WIDTH, BF16) == 2 * (TOKENS // (cp * tp)) * WIDTH
    assert pipeline_bytes(100, 8, FP32, extra_rows=20) == 120 * 8 * 4


def test_one_rank_sends_nothing() -> None:
    assert tensor_parallel_bytes(TOKENS, WIDTH, 1, BF16) == 0
    assert ring_bytes(TOKENS, WIDTH, 1, BF16) == 0
    assert ulysses_bytes(TOKENS, WIDTH, 1, BF16) == 0
    assert layer_bytes(parse_layout("dp8-zero1"), TOKENS, TEXT, WIDTH, HEADS, BF16) == LayerBytes(0, 0, 0, 0)


def test_fp32_is_twice_bf16() -> None:
    layout = parse_layout("tp2-sp-cp4-2d")
    double = layer_bytes(layout, TOKENS, TEXT, WIDTH, HEADS, FP32)
    assert double.total == 2 * layer_bytes(layout, TOKENS, TEXT, WIDTH, HEADS, BF16).total
    assert zero_bytes(PARAMETERS, 3, FP32, 8) == 2 * zero_bytes(PARAMETERS, 3, BF16, 8)


def test_tensor_parallel_counted_collective_by_collective() -> None:
    tokens, width, tp = 24, 16, 4
    part = tokens // tp * width * BF16
    sent_by_ring = (tp - 1) * part  # each of the tp - 1 hops passes one part on
    forward = {"self-attention": 2, "cross-attention query": 2, "feed-forward": 2}  # a gather and a scatter each
    backward = 2 * 3 + 3  # their opposites, and the inputs of three column layers gathered again
    assert tensor_parallel_bytes(tokens, width, tp, BF16) == (sum(forward.values()) + backward) * sent_by_ring
    # an all-reduce is a scatter and a gather; no input is gathered again
    assert tensor_parallel_bytes(tokens, width, tp, BF16, sp=False) == 6 * 2 * sent_by_ring


def test_ring_counted_hop_by_hop() -> None:
    tokens, width, ranks = 24, 16, 4
    block = tokens // ranks * width * BF16
    forward = sum(2 * block for _ in range(ranks - 1))
    backward = sum(4 * block for _ in range(ranks - 1))
    assert ring_bytes(tokens, width, ranks, BF16) == forward + backward


def test_ring_of_a_pack_exchanges_only_shared_segments() -> None:
    tokens, ranks, unit = 24, 4, 16 * BF16  # runs of 6 tokens
    assert packed_ring_bytes([24], tokens, 16, ranks, BF16) == ring_bytes(tokens, 16, ranks, BF16)
    assert packed_ring_bytes([6, 3, 3, 6, 6], tokens, 16, ranks, BF16) == 0
    assert packed_ring_bytes([4, 2], tokens, 16, ranks, BF16) == 0  # the rest of the pack is padding
    # ranks 0 and 1 hold 2 and 3 tokens of the second segment
    assert packed_ring_bytes([4, 5, 3, 6, 6], tokens, 16, ranks, BF16) == (4 * 3 + 2 * 2) * unit
    # the middle rank holds 6 of 10 tokens, which both neighbours need, and returns gradients of their 4
    assert packed_ring_bytes([4, 10, 4], tokens, 16, ranks, BF16) == (4 * 6 * 2 + 2 * 4) * unit


@pytest.mark.parametrize("segments", [[24], [12, 12], [5, 7, 9, 3], [1] * 24, [23, 1]])
def test_packs_never_send_more_than_one_long_clip(segments: list[int]) -> None:
    assert packed_ring_bytes(segments, 24, 16, 4, BF16) <= ring_bytes(24, 16, 4, BF16)


def test_ulysses_sends_less_per_rank_with_more_ranks_and_a_ring_does_not() -> None:
    ulysses = [ulysses_bytes(TOKENS, WIDTH, ranks, BF16) for ranks in (2, 4, 8)]
    ring = [ring_bytes(TOKENS, WIDTH, ranks, BF16) for ranks in (2, 4, 8)]
    assert ulysses == sorted(ulysses, reverse=True)
    assert ring == sorted(ring)


@pytest.mark.parametrize(("stage", "passes"), [(0, 2), (1, 2), (2, 6), (3, 15)])
def test_accumulated_micro_steps_are_free_to_stage_1_only(stage: int, passes: int) -> None:
    once = 1000 * BF16 * 3 // 4
    assert zero_bytes(1000, stage, BF16, 4, micro_steps=5) == passes * once


def test_all_reduced_gradients_cost_stage_1_half_as_much_again() -> None:
    assert zero_bytes(1000, 1, BF16, 4, reduce_scatter=False) * 2 == 3 * zero_bytes(1000, 1, BF16, 4)
    assert zero_bytes(1000, 2, BF16, 4, 5, reduce_scatter=False) == 11 * (1000 * BF16 * 3 // 4)


def test_layer_of_a_layout_is_the_sum_of_its_axes() -> None:
    s, d = TOKENS, WIDTH
    sent = layer_bytes(parse_layout("tp2-sp-cp4-ring"), s, TEXT, d, HEADS, BF16)
    assert sent == LayerBytes(
        tensor_parallel_bytes(s // 4, d, 2, BF16), 0, ring_bytes(s, d // 2, 4, BF16), text_bytes(TEXT, d // 2, 4, BF16)
    )
    sent = layer_bytes(parse_layout("tp2-cp4-ulysses"), s, TEXT, d, HEADS, BF16)
    plain = tensor_parallel_bytes(s // 4, d, 2, BF16, sp=False)
    assert sent == LayerBytes(plain, ulysses_bytes(s, d // 2, 4, BF16), 0, text_bytes(TEXT, d // 2, 4, BF16))
    assert sent.total == sent.tensor + sent.ulysses + sent.text


def test_2d_exchanges_heads_of_a_rank_and_rings_with_fewer() -> None:
    sent = layer_bytes(parse_layout("cp8-2d"), TOKENS, TEXT, WIDTH, HEADS, BF16)  # Ulysses 4, ring 2
    share = TOKENS // 8 * WIDTH * BF16  # of q, k, v or output, on one rank, before and after the exchange
    text = 4 * TEXT * WIDTH * BF16 * 7 // 8
    assert sent == LayerBytes(0, 8 * share * 3 // 4, 6 * share, text)  # one hop of a share, for each of six tensors
    assert sent.ring < layer_bytes(parse_layout("cp8-ring"), TOKENS, TEXT, WIDTH, HEADS, BF16).ring


def test_text_is_gathered_in_equal_shares_also_where_it_does_not_divide() -> None:
    assert text_bytes(10, 100, 1, BF16) == 0
    assert text_bytes(10, 100, 4, BF16) == 4 * 3 * 3 * 100 * BF16  # three rows to each of three others, four times


def test_a_layout_without_ulysses_degree_has_no_cost() -> None:
    with pytest.raises(ConfigError, match="12 heads"):
        layer_bytes(parse_layout("cp8-ulysses"), TOKENS, TEXT, 1536, 12, BF16)
