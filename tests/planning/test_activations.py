"""What autograd keeps of a forward pass on the meta device, beside what is planned, on ranks of many layouts."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from megavideo.config.layout import Layout, parse_layout
from megavideo.config.load import load
from megavideo.config.schema.train import TrainRun
from megavideo.planning.activations import PackShape, kept_bytes
from megavideo.testing.ranks import PRELOAD
from megavideo.testing.real_size import real_pack, run_rank

NONE, FULL = "train.recompute.kind=none", "train.recompute.kind=full"
SELECTIVE = "train.recompute.kind=selective"
IMAGES = "data.area=[32768,81920] data.frames=[1,1] data.tokens_per_pack=32768"
# ranks of the layout, the rank, and words
FAST = [
    (8, 3, f"run=wan_14b model.layers=2 layout=tp2-sp-cp4-2d-zero1 {NONE}"),
    (4, 2, f"run=wan_1b model.layers=4 layout=tp2-pp2-zero1 {SELECTIVE} train.recompute.parts=[self_attention,gelu]"),
    (1, 0, f"run=dit_5b model.layers=4 {FULL} train.recompute.layers=2"),
]
MORE = [
    (1, 0, f"run=wan_14b model.layers=2 {NONE}"),
    (1, 0, f"run=wan_14b model.layers=2 {FULL}"),
    (1, 0, f"run=wan_1b model.layers=3 {NONE} train.precision=fp32 layout=zero1"),
    (1, 0, f"run=wan_1b model.layers=3 {NONE} model.modulation=adaln_zero {IMAGES}"),
    (1, 0, f"run=wan_14b model.layers=2 {NONE} model.qk_norm=false model.cross_attn_norm=false"),
    (1, 0, f"run=dit_30b model.layers=2 {SELECTIVE} train.recompute.parts=[ffn]"),
    (1, 0, f"run=dit_30b model.layers=2 {SELECTIVE} train.recompute.parts=[cross_attention,self_attention,ffn]"),
    (1, 0, f"run=wan_5b model=wan_5b model.layers=2 {NONE} {IMAGES}".replace("run=wan_5b ", "run=dit_5b ")),
    (2, 1, f"run=wan_14b model.layers=2 layout=tp2-zero1 {NONE}"),
    (2, 1, f"run=wan_14b model.layers=2 layout=tp2-sp-zero1 {NONE}"),
    (4, 1, f"run=wan_14b model.layers=2 layout=cp4-ring-zero1 {NONE}"),
    (4, 3, f"run=wan_14b model.layers=2 layout=cp4-ulysses-zero2 {NONE}"),
    (8, 5, f"run=wan_14b model.layers=2 layout=cp8-2d-zero3 {NONE}"),
    (8, 7, f"run=dit_30b model.layers=2 layout=tp8-sp-zero1 {SELECTIVE} train.recompute.parts=[gelu]"),
    (4, 3, f"run=dit_30b model.layers=6 layout=pp4-zero1 {NONE}"),
    (2, 1, f"run=wan_14b model.layers=8 layout=pp2-dualpipev-zero1 {NONE}"),
    (2, 1, f"run=wan_1b model.layers=2 layout=tp2-sp-zero1 {NONE} train.precision=fp32"),
    (4, 0, f"run=wan_1b model.layers=2 layout=tp2-cp2-ring-zero1 {NONE} {IMAGES}"),
]


def kept_and_planned(words: str, rank: int, world_size: int) -> tuple[int, int]:
    """Bytes of the rank's pack that autograd keeps, and those that are planned."""
    config = load(TrainRun, "train", ["data.uri=none", *words.split()])
    report = run_rank(config, rank, world_size)
    assert report.problems == []
    batch = real_pack(config)
    pack = PackShape(len(batch.tokens), len(batch.text), len(batch.grid))
    layout: Layout = replace(parse_layout(config.layout), dp=1)
    parts = [
        range(int(first), int(last) + 1) for first, last in (part.split("-") for part in report.blocks.split(", "))
    ]
    found = [kept_bytes(config, layout, pack, part) for part in parts]
    planned = sum(kept.on_device - kept.inputs for kept in found)
    # what recomputed parts hold by reference alone counts in memory, and is not seen as saved
    recompute = config.train.recompute
    names = {"full": {"self_attention", "cross_attention"}, "none": set()}.get(recompute.kind, set(recompute.parts))
    if all(recompute.chooses(number, config.model.layers) for part in parts for number in part):
        planned -= sum(kept.rotary for kept in found) if "self_attention" in names else 0
        planned -= sum(kept.text for kept in found) if "cross_attention" in names else 0
    return report.saved_bytes, planned


def in_a_process(function: Any, *arguments: Any) -> Any:
    """What a function returns in a process of its own, since a process has one process group."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def check(cases: list[tuple[int, int, str]]) -> None:
    for world_size, rank, words in cases:
        kept, planned = in_a_process(kept_and_planned, words, rank, world_size)
        assert planned == pytest.approx(kept, rel=0.02), (words, planned / kept)


def test_three_layouts_and_policies() -> None:
    check(FAST)


@pytest.mark.slow
def test_more_sizes_packs_and_precisions() -> None:
    check(MORE)


def test_offload_moves_inputs_to_the_host() -> None:
    config = load(TrainRun, "train", ["run=wan_1b", "data.uri=none"])
    offloaded = replace(config, train=replace(config.train, recompute=replace(config.train.recompute, offload=True)))
    pack, part = PackShape(32_768, 16_384, 4), range(30)
    here, there = (kept_bytes(c, Layout(dp=1), pack, part) for c in (config, offloaded))
    assert there.offloaded == 30 * 32_768 * 1536 * 2
    assert there.on_device == here.on_device - there.offloaded
