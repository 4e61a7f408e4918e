"""Bytes of weights, gradients and states of a rank, beside those that DeepSpeed holds under a layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megavideo.parallel.engines.engine import REDUCE_BUCKET_ELEMENTS
from megavideo.parity.spec import ParitySpec
from megavideo.planning import states
from megavideo.testing.ranks import run_ranks
from tests.planning.held_ranks import held_and_planned

SPEC = ParitySpec(heads=8, num_layers=4, tokens=96, steps=1, packs_per_step=4)
BF16 = {"precision": "bf16"}
Cases = list[tuple[str, dict[str, Any]]]
FAST: Cases = [
    ("tp2-sp-zero1", BF16),
    ("dp2-zero2", {}),
    ("dp2-zero3", {"precision": "bf16", "heads": 48, "num_layers": 1}),  # with matrices that are not kept whole
    ("pp2-zero1", {"precision": "bf16", "num_layers": 5}),
    ("dp2-zero1-offload", BF16),
]
OF_TWO: Cases = [
    ("dp2-zero0", {}),
    ("dp2-zero1", BF16),
    ("dp2-zero2", BF16),
    ("dp2-zero3", {}),
    ("tp2-zero1", {}),
    ("tp2-sp-zero2", BF16),
    ("cp2-ulysses-zero1", BF16),
    ("cp2-ring-zero3", BF16),
    ("pp2-dualpipev-zero1", BF16),
    ("dp2-zero1", {"precision": "bf16", "optimizer": "muon"}),
    ("dp2-zero3", {"optimizer": "muon"}),
    ("dp2-zero2", {"precision": "bf16", "lora": 3}),
    ("tp2-zero0", {"modulation": "adaln_zero"}),
]
OF_FOUR: Cases = [
    ("tp2-sp-dp2-zero1", BF16),
    ("tp2-pp2-zero1", {"precision": "bf16", "num_layers": 5}),
    ("tp2-cp2-ring-zero2", BF16),
    ("tp2-sp-cp2-ulysses-zero3", BF16),
    ("dp4-zero2", {"packs_per_step": 8}),  # of one micro-step it accumulates nothing
    ("tp2-dp2-zero3", {"precision": "bf16", "lora": 2}),
    ("pp4-zero0", {}),
]


def check(cases: Cases, folder: Path, processes: int) -> None:
    for rank, rows in enumerate(run_ranks(held_and_planned, (cases, SPEC), folder, processes=processes)):
        for (layout, changes), (held, planned) in zip(cases, rows, strict=True):
            assert held == planned, f"rank {rank} of {layout} {changes}"
            assert held["weights"] > 0 and held["optimizer"] > 0 and held["accumulators"] > 0


def test_layouts_of_two_ranks(tmp_path: Path) -> None:
    check(FAST, tmp_path, 2)


@pytest.mark.slow
def test_more_layouts_of_two_ranks(tmp_path: Path) -> None:
    check(OF_TWO, tmp_path, 2)


@pytest.mark.slow
def test_layouts_of_four_ranks(tmp_path: Path) -> None:
    check(OF_FOUR, tmp_path, 4)


def test_settings_of_the_engine_are_those_that_are_planned_with() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    config = DeepSpeedZeroConfig(stage=3)
    assert states.REDUCE_BUCKET_ELEMENTS == REDUCE_BUCKET_ELEMENTS
    assert config.param_persistence_threshold == states.PERSISTENT_ELEMENTS
    assert config.max_live_parameters == states.LIVE_ELEMENTS
    assert config.prefetch_bucket_size == states.PREFETCH_ELEMENTS
