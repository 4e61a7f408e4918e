"""Muon on two real ranks: who computes which matrix, and what a checkpoint carries to another layout."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.testing.ranks import run_ranks
from tests.optim.muon_ranks import SPEC, counted, gone_on, saved

LAYOUTS = ["dp2-zero0", "dp2-zero1", "dp2-zero3", "tp2-sp", "pp2"]
WIDTH = SPEC.model.width
# of a block: queries, keys and values of itself, its output; query, key, value and output of the text; feed-forward
OF_A_BLOCK = {(WIDTH, WIDTH): 8, (2 * WIDTH, WIDTH): 1, (WIDTH, 2 * WIDTH): 1}


def test_each_matrix_is_orthogonalised_once_a_step_by_one_rank_of_all(tmp_path: Path) -> None:
    ranks = run_ranks(counted, (LAYOUTS,), tmp_path, processes=2)
    expected = {shape: number * SPEC.num_layers for shape, number in OF_A_BLOCK.items()}
    for i, layout in enumerate(LAYOUTS):
        shapes = [[tuple(shape) for shape in rank[i]["shapes"]] for rank in ranks]
        assert Counter(shapes[0] + shapes[1]) == expected, layout
        assert len(shapes[0]) == len(shapes[1]), layout  # the work is shared evenly
        assert not any(rank[i]["others"] for rank in ranks), layout  # DeepSpeed's own Muon has no part in it


def test_a_checkpoint_goes_on_under_another_layout_and_not_with_another_optimizer(tmp_path: Path) -> None:
    folder, copies = str(tmp_path / "run"), str(tmp_path / "copies")
    stayed = run_ranks(saved, ("dp2-zero1", folder), tmp_path / "a", processes=2)[0]
    cases = [("muon", "fp32", "tp2-sp"), ("muon", "fp32", "dp2-zero3"), ("adamw", "fp32", "dp2-zero1")]
    *losses, refused = run_ranks(gone_on, (cases, folder, copies), tmp_path / "b", processes=2)[0]
    assert losses == [pytest.approx(stayed, rel=1e-6)] * 2
    reader = CheckpointReader(find_checkpoint(Path(folder)))
    of_muon = {name for (state, name) in reader._saved if state == "momentum"}
    assert len(of_muon) == 7 * SPEC.num_layers
    assert all((state, name) not in reader._saved for state in ("exp_avg", "exp_avg_sq") for name in of_muon)
    for copy in Path(copies).iterdir():
        other = CheckpointReader(find_checkpoint(copy))
        for name, shape in reader.manifest.shapes.items():
            for state in ("weight", "ema", *(["momentum"] if name in of_muon else ["exp_avg", "exp_avg_sq"])):
                assert torch.equal(reader.value(state, name, shape), other.value(state, name, shape)), (copy, name)
    assert "made with another optimizer" in refused and "momentum" in refused and "optim=" in refused
