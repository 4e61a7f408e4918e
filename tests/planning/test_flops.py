"""The FLOPs formula against published figures."""

from __future__ import annotations

import pytest

from megavideo.planning.flops import BlockShape, forward_flops, train_flops

STEP_VIDEO = BlockShape(layers=48, width=6144, ffn=4 * 6144)
WAN_14B = BlockShape(layers=40, width=5120, ffn=13824)


@pytest.mark.parametrize(
    ("tokens", "tflop"),
    [
        (256, 44.99),
        (2880, 475.87),
        (3072, 509.31),
        (5760, 1004.89),
        (6144, 1079.86),
        (8640, 1592.61),
        (9216, 1717.20),
    ],
)
def test_step_video_t2v(tokens: int, tflop: float) -> None:
    assert train_flops(STEP_VIDEO, [(tokens, 256)]) / 1e12 == pytest.approx(tflop, abs=0.01)


def test_wan_14b() -> None:
    assert train_flops(WAN_14B, [(37_440, 512)]) / 37_440 / 1e9 == pytest.approx(165.2, abs=0.05)


def test_a_pack_costs_what_its_segments_cost() -> None:
    segments = [(144, 12), (36, 5), (1024, 77)]
    assert train_flops(WAN_14B, segments) == 3 * sum(forward_flops(WAN_14B, s, t) for s, t in segments)
    # attention does not cross segments: a pack is cheaper than one clip of as many tokens
    assert train_flops(WAN_14B, segments) < train_flops(WAN_14B, [(1204, 94)])


def test_attention_equals_the_linear_part_at_three_widths_and_a_feed_forward() -> None:
    crossing = 3 * WAN_14B.width + WAN_14B.ffn
    linear = WAN_14B.layers * 2 * crossing * (6 * WAN_14B.width**2 + 2 * WAN_14B.width * WAN_14B.ffn)
    assert forward_flops(WAN_14B, crossing, 0) == 2 * linear


def test_gated_feed_forward_has_a_third_matrix() -> None:
    gated = BlockShape(2, 64, 256, ffn_matrices=3)
    assert forward_flops(gated, 10, 0) - forward_flops(BlockShape(2, 64, 256), 10, 0) == 2 * 2 * 10 * 64 * 256
