"""The FLOPs formula against published figures, and against what torch counts of the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from megavideo.config.schema.model import ModelConfig
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.planning.flops import BlockShape, forward_flops, train_flops
from megavideo.types import Grid
from tests.model.packs import make_pack

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


@pytest.mark.parametrize(
    ("shape", "tokens"),
    [(BlockShape(30, 1536, 8960), 13_600), (BlockShape(30, 3072, 14_336), 23_600), (WAN_14B, 29_200)],
    ids=["1.3B", "5B", "14B"],
)
def test_attention_equals_the_linear_part_at_three_widths_and_a_feed_forward(shape: BlockShape, tokens: int) -> None:
    crossing = 3 * shape.width + shape.ffn
    linear = shape.layers * 2 * crossing * (6 * shape.width**2 + 2 * shape.width * shape.ffn)
    assert crossing == pytest.approx(tokens, abs=50)
    assert forward_flops(shape, crossing, 0) == 2 * linear


def test_gated_feed_forward_has_a_third_matrix() -> None:
    gated = BlockShape(2, 64, 256, ffn_matrices=3)
    assert forward_flops(gated, 10, 0) - forward_flops(BlockShape(2, 64, 256), 10, 0) == 2 * 2 * 10 * 64 * 256


def test_it_is_what_torch_counts_of_the_blocks() -> None:
    """Each matrix product and attention of a pack of two segments, to the last one."""
    config = ModelConfig(layers=2, width=64, ffn=256, heads=4, latent_channels=4, text_dim=32, time_dim=32)
    grids, texts = (Grid(3, 4, 4), Grid(1, 5, 6)), (7, 4)
    tokens = [torch.randn(grid.num_tokens, 16) for grid in grids]
    pack = make_pack(grids, [torch.randn(length, 32) for length in texts], tokens, (1.0, 500.0))

    def attention(query: Any, key: Any, value: Any, *rest: Any, **others: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch's table lacks it
    with FlopCounterMode(display=False, custom_mapping={kernel: attention}) as counter:
        DiT(config, LocalLayers())(pack)
    counts = counter.get_flop_counts()
    counted = sum(sum(counts[f"DiT.blocks.{block}"].values()) for block in range(config.layers))
    shape = BlockShape(config.layers, config.width, config.ffn)
    assert counted == sum(forward_flops(shape, grid.num_tokens, t) for grid, t in zip(grids, texts, strict=True))
