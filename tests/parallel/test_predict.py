"""Predictions without gradient, by weights and average, under every kind of layout; and that training has no trace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from megavideo.parallel.engines.predict import magnitudes_kept
from megavideo.parity.spec import ParitySpec
from megavideo.testing.ranks import run_ranks
from tests.parallel.predict_cases import OTHER_TOKENS, run_layouts

ONE = ("zero0", "zero1", "zero3")
TWO = ("tp2-sp-zero1", "cp2-ring-zero0", "pp2-zero0", "dp2-zero2", "dp2-zero3")
FOUR = (
    "tp2-pp2-zero1",
    "tp2-sp-cp2-ring-zero3",
    "cp2-ulysses-pp2-dualpipev-zero1",
    "pp2-dp2-zero1",
    "tp2-dp2-zero2-offload",
    "dp4-zero3-offload",
)
IN_BF16 = ("tp2-sp-zero1", "pp2-zero1", "dp2-zero3")
SPEC = ParitySpec(packs_per_step=2, steps=3, num_layers=2)
BF16 = replace(SPEC, precision="bf16")
DEEP = ParitySpec(packs_per_step=4, steps=3)  # dualpipev wants 4 blocks and packs, dp4 as many packs

# of the largest value; AdamW's first steps make full steps of gradients that are rounding only
CLOSE = 1e-4

Accounts = dict[str, list[dict[str, Any]]]


def accounts(spec: ParitySpec, layouts: tuple[str, ...], processes: int, folder: Path) -> Accounts:
    """What each rank tells of each layout."""
    ranks = run_ranks(run_layouts, (spec, layouts), folder, processes=processes)
    return {layout: [rank[layout] for rank in ranks] for layout in layouts}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Accounts:
    return accounts(SPEC, ONE, 1, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Accounts:
    return accounts(DEEP, ("zero0",), 1, tmp_path_factory.mktemp("deep"))


def check(found: list[dict[str, Any]], expected: dict[str, Any], tolerance: float) -> None:
    for rank in found:
        assert rank["mixed"] == rank["plain"]  # to the last bit
        assert rank["kept"] and rank["same_again"] and rank["grads"] == 0
        assert len(rank["raw"][1]) == OTHER_TOKENS
        for kind in ("raw", "average"):
            for mine, theirs in zip(rank[kind], expected[kind], strict=True):
                mine, theirs = torch.tensor(mine)[:60], torch.tensor(theirs)[:60]
                assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max(), kind
    assert all(rank["raw"] == found[0]["raw"] for rank in found)
    assert any(rank["own"] is not None for rank in found)
    assert not torch.allclose(torch.tensor(found[0]["raw"][0]), torch.tensor(found[0]["average"][0]), rtol=1e-3)


def test_it_is_the_plain_models_prediction(one: Accounts) -> None:
    reference = one["zero0"][0]["reference"]
    assert reference["predicted"] == reference["weights"]
    assert reference["predicted_by_average"] == reference["averages"]
    assert reference["weights"] != reference["averages"]


@pytest.mark.parametrize("layout", ONE)
def test_on_one_process(one: Accounts, layout: str) -> None:
    check(one[layout], one["zero0"][0], CLOSE)


def test_on_two_processes(one: Accounts, tmp_path: Path) -> None:
    for layout, found in accounts(SPEC, TWO, 2, tmp_path).items():
        print(layout)
        check(found, one["zero0"][0], CLOSE)


def test_under_dualpipev(deep: Accounts, tmp_path: Path) -> None:
    for found in accounts(DEEP, ("pp2-dualpipev-zero1",), 2, tmp_path).values():
        check(found, deep["zero0"][0], CLOSE)


def test_in_bf16(one: Accounts, tmp_path: Path) -> None:
    for layout, found in accounts(BF16, IN_BF16, 2, tmp_path).items():
        print(layout)
        check(found, one["zero0"][0], 5e-2)


@pytest.mark.slow
def test_on_four_processes(deep: Accounts, tmp_path: Path) -> None:
    for layout, found in accounts(DEEP, FOUR, 4, tmp_path).items():
        print(layout)
        check(found, deep["zero0"][0], CLOSE)


class Scaled(nn.Module):
    """Notes its input's largest magnitude as Transformer Engine does under delayed scaling, from its first pass on."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.fp8_meta: dict[str, Any] = {}
        self.rows = rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.fp8_meta.setdefault("scaling_fwd", SimpleNamespace(amax_history=torch.zeros(self.rows, 1)))
        state.amax_history[0] = torch.maximum(state.amax_history[0], x.abs().amax())
        return x


def test_delayed_scales_do_not_see_the_passes() -> None:
    seen, unseen = Scaled(3), Scaled(3)
    model = nn.Sequential(nn.Linear(1, 1), seen, unseen)
    seen(torch.tensor([2.0]))
    seen.fp8_meta["scaling_fwd"].amax_history[1] = 5.0
    with magnitudes_kept(model):
        model(torch.tensor([100.0]))
        assert seen.fp8_meta["scaling_fwd"].amax_history[0] > 2.0
    assert seen.fp8_meta["scaling_fwd"].amax_history.flatten().tolist() == [2.0, 5.0, 0.0]
    assert not unseen.fp8_meta["scaling_fwd"].amax_history.any()
