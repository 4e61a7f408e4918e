"""What DeepSpeed is told: it does not wait for the device within a step, and the size of buckets changes no result."""

from __future__ import annotations

from pathlib import Path

import pytest

from megavideo.parity.spec import ParitySpec
from megavideo.testing.ranks import run_ranks
from tests.parallel.engine_ranks import plain_step, results, waits_of_steps

BF16 = ParitySpec(steps=4, precision="bf16")


@pytest.mark.parametrize(
    ("spec", "layouts", "processes"),
    [(BF16, ("zero1", "zero2"), 1), (ParitySpec(steps=4), ("dp2-zero3", "pp2-zero1", "pp2-dualpipev-zero1"), 2)],
)
def test_a_step_never_waits_for_the_device(
    spec: ParitySpec, layouts: tuple[str, ...], processes: int, tmp_path: Path
) -> None:
    told = run_ranks(waits_of_steps, (spec, layouts), tmp_path, processes=processes)
    assert told == [dict.fromkeys(layouts, 0)] * processes


def test_nor_does_that_of_a_module_of_one_piece_which_computes_in_bfloat16(tmp_path: Path) -> None:
    assert run_ranks(plain_step, (), tmp_path, processes=1) == [[0, "torch.bfloat16", "torch.float32"]]


@pytest.mark.slow
def test_the_size_of_buckets_changes_no_bit(tmp_path: Path) -> None:
    """One bucket for all, many small ones, and one that no matrix fits in."""
    layouts = ("dp2-zero1", "dp2-zero2", "dp2-zero3")
    for rank in run_ranks(results, (BF16, layouts, (500_000_000, 5_000, 400)), tmp_path, processes=2):
        for layout in layouts:
            assert len(rank[layout]) == 3 and len(set(rank[layout])) == 1, layout
