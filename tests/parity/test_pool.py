"""Processes of a layout that do not come to their end: which was the first, of what, and that none is left."""

from __future__ import annotations

import multiprocessing

import pytest

from megavideo.parity.pool import Pool, RanksFailed
from megavideo.parity.spec import ParitySpec

SPEC = ParitySpec(steps=1, num_layers=1, packs_per_step=2)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("killed", r"^process 1 was ended by SIGKILL$"),
        ("broken", r"^process 1 failed: AssertionError: no two ranks agree\nTraceback"),
        (
            "not_finite",
            r"^process [01] failed: NumericsError: step 1 was skipped, as it is not finite: loss nan, [^\n]*$",
        ),
    ],
)
def test_a_failing_process_is_named(fault: str, told: str) -> None:
    with pytest.raises(RanksFailed, match=told):
        Pool().run(SPEC, "dp2-zero1", 2, f"megavideo.testing.faults:{fault}")
    assert multiprocessing.active_children() == []


def test_processes_that_wait_for_each_other_are_ended() -> None:
    with pytest.raises(RanksFailed, match=r"^2 processes on \d+ cores were not done in 1 s"):
        Pool(limit_seconds=1.0).run(SPEC, "dp2-zero1", 2, "megavideo.testing.faults:hung")
    assert multiprocessing.active_children() == []
