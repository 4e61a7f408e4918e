"""What a layout must do, left out once, or done to what is another rank's: the comparison must say so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megavideo.parity.oracle import run_oracle
from megavideo.parity.pool import Pool, RanksFailed
from megavideo.parity.record import Record
from megavideo.parity.run import LIMITS, compare_layout
from megavideo.parity.spec import ParitySpec

SPEC = ParitySpec(steps=2, num_layers=2, packs_per_step=4)
FAULTS = {
    "no_sequence_sum": "tp2-sp",
    "no_sum_for_one_bias": "tp2-sp",
    "no_context_scale": "cp2-ring",
    "no_stage_sum": "pp2",
    "no_ring_return": "cp2-ring",
    "no_zero_average": "dp2-zero1",
    "no_norm_sum": "tp2-sp",
    "swapped_heads": "cp2-ulysses",
    "swapped_runs": "cp2-ring",
    "same_packs": "dp2-zero1",
    "stale_weights": "dp2-zero1",
    "stale_average": "dp2-zero1",
}


MUON_SPEC = replace(SPEC, optimizer="muon", packs_per_step=2)


@pytest.fixture(scope="module")
def oracle() -> Record:
    return run_oracle(SPEC)


@pytest.mark.parametrize("layout", sorted(set(FAULTS.values())))
def test_without_a_fault_the_layout_passes(oracle: Record, layout: str) -> None:
    found = compare_layout(Pool(), SPEC, oracle, layout)
    assert found.within(LIMITS["fp32"].loss, LIMITS["fp32"].gradient), found


@pytest.mark.parametrize("fault", ["unmasked_outputs", "unmasked_gradients"])
def test_rows_of_no_segment_that_keep_what_a_kernel_leaves_are_caught(oracle: Record, fault: str) -> None:
    """By the stand-in for a GPU's kernel: what the CPU's own leaves there is chance."""
    spec = replace(SPEC, kernel="stand-in")
    inside = f"megavideo.testing.faults:{fault}"
    assert compare_layout(Pool(), spec, oracle, "zero0").within(LIMITS["fp32"].loss, LIMITS["fp32"].gradient)
    told = "finite" if fault == "unmasked_gradients" else "rows of the query past the last segment"
    with pytest.raises(RanksFailed, match=told):
        compare_layout(Pool(), spec, oracle, "zero0", inside)


@pytest.mark.parametrize(("fault", "layout"), [("no_adapter_sum", "tp2-sp"), ("no_adapter_meeting", "tp2")])
def test_a_fault_of_adapters_is_caught(fault: str, layout: str) -> None:
    spec = ParitySpec(steps=1, num_layers=1, packs_per_step=2, heads=4, lora=3)
    found = compare_layout(Pool(), spec, run_oracle(spec), layout, f"megavideo.testing.faults:{fault}")
    assert found.max_grad_rel > 100 * LIMITS["fp32"].gradient, found
    assert ".lora." in found.worst


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(oracle: Record, fault: str) -> None:
    found = compare_layout(Pool(), SPEC, oracle, FAULTS[fault], f"megavideo.testing.faults:{fault}")
    assert not found.within(LIMITS["fp32"].loss, LIMITS["fp32"].gradient), found
    # by far, not by a rounding error
    assert max(found.max_grad_rel, found.max_param_rel, found.max_ema_rel) > 100 * LIMITS["fp32"].gradient, found
    assert found.worst.startswith({"stale_average": "ema of", "stale_weights": "weight of"}.get(fault, "gradient of"))


def test_matrices_whose_shards_muon_takes_apart_are_caught() -> None:
    inside = "megavideo.testing.faults:shards_apart"
    found = compare_layout(Pool(), MUON_SPEC, run_oracle(MUON_SPEC), "tp2", inside)
    assert found.max_param_rel > 10 * LIMITS["fp32"].gradient, found
