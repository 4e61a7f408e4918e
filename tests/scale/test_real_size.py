"""Every stage of the curriculum at 14B and 30B on 256 ranks: some of them forward and backward on the meta device.

What only size shows is seen here: shapes under real layouts, gradients of every parameter, reads of the device by the
host, and tensors that 32-bit indices do not reach. `-s` prints a table.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch

from megavideo.config.load import load
from megavideo.config.schema.train import TrainRun
from megavideo.model.layers import LocalLayers
from megavideo.testing import real_size
from megavideo.testing.ranks import PRELOAD
from megavideo.testing.real_size import RankReport, Watch, run_rank

WORLD = 256
RANKS = (0, 1, 149, 255)  # 149 is in the middle of every axis that has one
STAGES = ("images_256", "short_256", "medium_512", "long_1024", "multimodal")
INT32 = 2**31
HEADER = (
    "model     stage       rank  tp uly ring dp pp  blocks  clips  parameters   kept     largest result\n"
    "                                                              GB           GB       of 2**31"
)


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, since a process has one process group."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def run_ranks(model: str, stage: str, ranks: Sequence[int], *words: str) -> list[RankReport]:
    """Reports of some ranks of a stage."""
    config = load(TrainRun, "train", [f"run={model}", "curriculum=sora", f"stage={stage}", "data.uri=none", *words])
    return [run_rank(config, rank, WORLD) for rank in ranks]


def run_detached(model: str, stage: str) -> RankReport:
    """A rank of a model through whose modulation tables no gradient flows."""
    detached = type("Detached", (LocalLayers,), {"over_tokens": lambda self, shared: shared.detach()})
    real_size.make_layers = lambda plan, attention, device: detached(attention)  # type: ignore[attr-defined]
    return run_ranks(model, stage, [0], "model.layers=1", "train.recompute.layers=null")[0]


def row(report: RankReport) -> str:
    """A line of the table."""
    numbers = [part.strip("abcdefghijklmnopqrstuvwxyz") for part in report.place.split()]
    place = f"{numbers[0]:>2} {numbers[1]:>3} {numbers[2]:>4} {numbers[3]:>3} {numbers[4]:>2}"
    return (
        f"{report.model:9} {report.stage:11} {report.rank:4}  {place}  {report.blocks:6}  {report.segments:5}  "
        f"{report.parameter_bytes / 1e9:9.2f}  {report.saved_bytes / 1e9:7.2f}   {report.largest / INT32:7.3f}  "
        f"{report.largest_where}"
    )


def check(model: str, stage: str, reports: Sequence[RankReport], *, blocks: int | None = None) -> None:
    sys.stdout.write("\n".join(["", HEADER, *map(row, reports), ""]))
    config = load(TrainRun, "train", [f"run={model}", "curriculum=sora", f"stage={stage}", "data.uri=none"])
    width, tp = config.model.width, int((config.layout.split("-")[0].partition("tp")[2]) or 1)
    matrices = 8 * width**2 + 2 * width * config.model.ffn  # of a block
    for report in reports:
        assert report.problems == [], report
        assert 0 < report.largest < INT32, report
        first, _, last = report.blocks.partition("-")
        held = 2 * (int(last) - int(first) + 1) * matrices / tp
        # besides the blocks' matrices there are biases, norms and tables, and whole on each rank embedder and head
        assert held < report.parameter_bytes < 1.01 * held + 2 * 10 * width**2, report
        assert report.saved_bytes > 0 and report.segments > 1, report


FAST = [("dit_30b", "long_1024", (149,)), ("wan_14b", "multimodal", (255,)), ("dit_30b", "images_256", (1,))]


@pytest.mark.parametrize(("model", "stage", "ranks"), FAST)
def test_four_blocks_of_real_width(model: str, stage: str, ranks: tuple[int, ...]) -> None:
    words = ("model.layers=4", "train.recompute.layers=null")
    check(model, stage, in_a_process(run_ranks, model, stage, ranks, *words))


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("model", ["wan_14b", "dit_30b"])
def test_the_whole_model_under_every_stage(model: str, stage: str) -> None:
    check(model, stage, in_a_process(run_ranks, model, stage, RANKS))


def test_a_parameter_without_gradient_is_found() -> None:
    report = in_a_process(run_detached, "wan_14b", "images_256")
    assert [problem for problem in report.problems if "blocks.0.modulation_table" in problem and "none" in problem]


def test_reads_of_the_device_and_large_results_are_found() -> None:
    with Watch() as watch:
        torch.ones(3).sum().item()
        torch.empty(INT32, dtype=torch.int8, device="meta").view(2, -1)
        torch.zeros(2000)
    assert watch.largest == INT32 and watch.largest_where.startswith("aten.empty")
    assert [problem.split()[0] for problem in watch.problems] == ["aten._local_scalar_dense", "aten.zeros"]
