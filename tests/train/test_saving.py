"""A save that fails on one rank fails on all, and leaves the checkpoint before it to go on from."""

from __future__ import annotations

import pytest

from megavideo.testing.train_cases import Outcome
from tests.train.conftest import Place


@pytest.mark.parametrize(("name", "rank"), [("file_fails", 1), ("folder_fails", 0), ("manifest_fails", 0)])
def test_all_ranks_raise_and_the_run_goes_on(
    place: Place, on_two: dict[str, list[Outcome]], name: str, rank: int
) -> None:
    for outcome in on_two[name]:
        assert outcome.error == "CheckpointError"
        assert "step_00000004: not saved; the checkpoints before it are untouched" in outcome.message
        assert f"rank {rank}: OSError" in outcome.message
    for outcome in on_two[f"{name} again"]:
        assert outcome.report and outcome.report["resumed_at"] == 2
    assert len(place.losses(name)) == 8
    left = sorted(path.name for path in (place.run(name) / "checkpoints").iterdir())
    assert left == ["step_00000006", "step_00000008"]  # keep_last=2, and nothing unfinished
