"""The step-time model: parts add up, more of what helps is never slower, and what is not there costs nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megavideo.planning.chips import chip_names, chip_of
from megavideo.planning.flops import BlockShape, forward_flops
from megavideo.planning.step_time import Cluster, Constants, StepTime, step_time
from megavideo.planning.workload import Scheme, Shape, attention_flops, element_bytes, layer_products

SHAPE = Shape(layers=40, width=5120, ffn=13_824, heads=40, parameters=14_288_000_000)
H100 = Cluster(chip_of("h100"))
ALONE = Scheme(segments=((37_440, 512),), micro_steps=4)
SPREAD = replace(ALONE, tp=2, sp=True, cp=4, pp=2, dp=4)
IDEAL = Constants(products=1.0, attention=1.0, elements=1.0, exposed=0.2)


def seconds(scheme: Scheme, cluster: Cluster = H100, shape: Shape = SHAPE) -> StepTime:
    return step_time(shape, scheme, cluster, IDEAL)


def test_parts_add_up_to_the_step() -> None:
    time = seconds(SPREAD)
    assert sum(time.parts().values()) == pytest.approx(time.total, rel=1e-12)
    assert all(value >= 0 for value in time.parts().values()) and "hidden" not in time.parts()


def test_products_and_attention_are_those_of_the_flops_formula() -> None:
    found = sum(product.flops for product in layer_products(SHAPE, ALONE))
    found += sum(flops for _, flops in attention_flops(SHAPE, ALONE))
    assert found == pytest.approx(forward_flops(BlockShape(1, 5120, 13_824), 37_440, 512), rel=1e-12)
    shared = replace(ALONE, tp=2, sp=True, cp=4)
    apart = sum(product.flops for product in layer_products(SHAPE, shared))
    assert apart * 8 == pytest.approx(sum(product.flops for product in layer_products(SHAPE, ALONE)), rel=1e-12)


def test_one_gpu_communicates_nothing() -> None:
    time = seconds(ALONE)
    assert (time.tensor, time.context, time.pipeline, time.bubble, time.data, time.hidden) == (0.0,) * 6
    assert time.recompute == 0.0 and time.head == 0.0


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"tp": 2, "sp": True}, "tensor"),
        ({"cp": 4}, "context"),
        ({"cp": 4, "ulysses": 4}, "context"),
        ({"pp": 2}, "bubble"),
        ({"pp": 2}, "pipeline"),
        ({"dp": 8}, "data"),
        ({"recompute": 1.0}, "recompute"),
    ],
)
def test_each_way_of_sharing_costs_something_of_its_own(change: dict[str, object], part: str) -> None:
    assert seconds(ALONE).parts()[part] == 0.0
    assert seconds(replace(ALONE, **change)).parts()[part] > 0.0  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["overlap_tp", "overlap_dp", "overlap_cp"])
def test_overlap_hides_and_never_costs(name: str) -> None:
    base = replace(SPREAD, pp=1, overlap_tp=False, overlap_dp=False, overlap_cp=False)
    without, beside = seconds(base), seconds(replace(base, **{name: True}))  # type: ignore[arg-type]
    assert beside.total < without.total
    assert beside.total + beside.hidden == pytest.approx(without.total + without.hidden)


@pytest.mark.parametrize("nic", [12.5e9, 25e9, 50e9, 100e9])
def test_a_faster_fabric_is_never_slower(nic: float) -> None:
    wide = replace(SPREAD, cp=8, dp=8)
    slow, fast = (seconds(wide, Cluster(chip_of("h100"), 8, speed)).total for speed in (nic, 2 * nic))
    assert fast < slow


def test_more_gpus_at_the_same_batch_are_never_slower() -> None:
    times = [seconds(replace(ALONE, dp=dp, micro_steps=64 // dp)).total for dp in (1, 2, 4, 8, 16, 32, 64)]
    assert times == sorted(times, reverse=True)


def test_longer_clips_take_longer_a_token() -> None:
    per_token = [seconds(replace(ALONE, segments=((s, 512),))).total / s for s in (8_192, 32_768, 131_072)]
    assert per_token == sorted(per_token) and per_token[2] > 2 * per_token[0]


def test_images_of_one_pack_attend_to_next_to_nothing() -> None:
    images = seconds(replace(ALONE, segments=((256, 40),) * 128))
    clip = seconds(replace(ALONE, segments=((32_768, 5120),)))
    assert images.attention < 0.03 * clip.attention
    assert images.products == pytest.approx(clip.products, rel=0.01)


def test_more_micro_batches_make_a_bubble_smaller_and_dualpipev_halves_it() -> None:
    few, many = (seconds(replace(SPREAD, micro_steps=count)) for count in (4, 32))
    assert few.bubble == pytest.approx(many.bubble)
    assert few.bubble / few.total > many.bubble / many.total
    assert seconds(replace(SPREAD, dual=True)).bubble == pytest.approx(few.bubble / 2)


def test_kernels_of_attention_differ_where_they_should() -> None:
    times = [seconds(replace(ALONE, attention=name)).attention for name in ("fa3", "cudnn", "fa2")]
    assert times == sorted(times) and times[2] > 1.6 * times[0]


def test_eager_kernels_move_what_was_counted() -> None:
    # bytes a token and width of a block, forward and backward, counted on the meta device
    eager = replace(ALONE, kernels="eager")
    assert element_bytes(replace(SHAPE, width=1536, ffn=8960), eager) == pytest.approx(458, rel=0.01)
    assert element_bytes(SHAPE, eager) == pytest.approx(427, rel=0.01)
    assert element_bytes(SHAPE, replace(eager, kernels="compiled")) < 0.6 * 427


def test_a_ceiling_known_by_another_account() -> None:
    # at 790 TFLOP/s for everything that a model computes: 24.8 s of 75,600 tokens
    long = replace(ALONE, segments=((75_600, 512),))
    products = sum(3 * product.flops for product in layer_products(SHAPE, long))
    attention = sum(3 * flops for _, flops in attention_flops(SHAPE, long))
    assert 40 * (products + attention) / 790e12 == pytest.approx(24.8, rel=0.01)


@pytest.mark.parametrize("name", chip_names())
def test_every_chip_says_where_its_figures_come_from(name: str) -> None:
    chip = chip_of(name)  # type: ignore[arg-type]
    assert "data sheet" in chip.source
    assert 0.5 < chip.gemm_speed(8192) / (chip.bf16_tflops * 1e12) < 1.0
    assert all(0.1 < r.forward / chip.bf16_tflops < 0.9 and r.backward < r.forward for r in chip.attention.values())
    assert chip.calibrated == (name in ("h100", "h200"))
