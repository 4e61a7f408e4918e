"""A save that fails on one rank is given up on all, and ends nothing: the run goes on, and says what happened."""

from __future__ import annotations

import pytest

from tests.train.conftest import Place, Runs


@pytest.mark.parametrize(
    ("name", "rank"),
    [("file_fails", 1), pytest.param("folder_fails", 0, marks=pytest.mark.slow), ("manifest_fails", 0)],
)
def test_the_run_goes_on_without_that_checkpoint(place: Place, on_two: Runs, name: str, rank: int) -> None:
    assert all(outcome.report and outcome.report["steps"] == 8 for outcome in on_two[name])
    (fault,) = place.faults(name)
    assert (fault["step"], fault["kind"]) == (4, "save_failed")
    assert f"rank {rank}" in fault["reason"] and "OSError" in fault["reason"]
    assert len(place.losses(name)) == 8
    left = sorted(path.name for path in (place.run(name) / "checkpoints").iterdir())
    assert left == ["step_00000006", "step_00000008"]  # keep_last=2, and nothing unfinished
    for outcome in on_two[f"{name} again"]:
        assert outcome.report and outcome.report["resumed_at"] == 8
