"""Which checkpoints are kept, by a table; and that the others go, also from a store."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from megavideo.checkpoint.manifest import list_checkpoints
from megavideo.checkpoint.retention import Summary, reasons_to_keep
from megavideo.checkpoint.saver import Checkpointer, SaveGroup
from megavideo.checkpoint.store_place import StorePlace
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.data.storage.open import open_storage
from tests.checkpoint.states import check, fragments, header

# losses of steps 10 to 80; the ends of stages are at 30 and 60
LOSSES = {10: 0.9, 20: 0.3, 30: 0.5, 40: math.nan, 50: 0.3, 60: None, 70: 0.4, 80: 0.6}
FOUND = [Summary(step, loss, step in (30, 60)) for step, loss in LOSSES.items()]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"keep_last": 1, "keep_stage_ends": False}, {80: "last"}),
        ({"keep_last": 3, "keep_stage_ends": False}, {60: "last", 70: "last", 80: "last"}),
        ({"keep_last": 20, "keep_stage_ends": False}, dict.fromkeys(LOSSES, "last")),
        ({"keep_last": 1}, {30: "stage end", 60: "stage end", 80: "last"}),
        ({"keep_last": 1, "keep_every": 20, "keep_stage_ends": False},
         {20: "every", 40: "every", 60: "every", 80: "last every"}),
        # of equal losses the earlier one is the better, and one that is not finite is none
        ({"keep_last": 1, "keep_best": 1, "keep_stage_ends": False}, {20: "best", 80: "last"}),
        ({"keep_last": 1, "keep_best": 3, "keep_stage_ends": False}, {20: "best", 50: "best", 70: "best", 80: "last"}),
        ({"keep_last": 2, "keep_best": 1, "keep_every": 70},
         {20: "best", 30: "stage end", 60: "stage end", 70: "last every", 80: "last"}),
    ],
)  # fmt: skip
def test_why_each_is_kept(settings: dict[str, Any], kept: dict[int, str]) -> None:
    reasons = reasons_to_keep(reversed(FOUND), CheckpointConfig(**settings))
    assert {name: " ".join(found) for name, found in reasons.items() if found} == {
        f"step_{step:08d}": reason for step, reason in kept.items()
    }
    assert list(reasons) == [summary.name for summary in FOUND]


@pytest.mark.parametrize("through_folder", [True, False])
def test_the_others_are_removed_here_and_in_the_store(tmp_path: Path, through_folder: bool) -> None:
    """Also those of an earlier start, of which only the manifests tell."""
    settings = CheckpointConfig(keep_last=1, keep_best=1, keep_every=4, through_folder=through_folder)
    losses = {1: 0.5, 2: 0.2, 3: 0.4, 4: 0.3, 5: 0.9, 6: None, 7: 0.6}
    storage = open_storage(str(tmp_path / "store"))
    for session, steps in (("one", (1, 2, 3, 4)), ("two", (5, 6, 7))):
        with Checkpointer(settings, tmp_path / "run", SaveGroup(0, 1, session), storage) as checkpointer:
            for step in steps:
                more = {"validation_loss": losses[step], "stage_end": step == 3}
                checkpointer.save(header(step, **more), fragments(step))
            checkpointer.wait(required=True)
            assert [event.copy_failure for event in checkpointer.poll()] == [None] * len(steps)
    kept = [f"step_{step:08d}" for step in (2, 3, 4, 7)]  # best, stage end, every and last
    assert StorePlace(storage).names() == kept
    assert sorted({name.split("/")[0] for name in storage.list()}) == kept  # and nothing of the others is left
    if through_folder:
        assert [path.name for path in list_checkpoints(tmp_path / "run")] == kept
        assert len(list((tmp_path / "run").iterdir())) == len(kept)
        assert [check(path) for path in list_checkpoints(tmp_path / "run")] == [2, 3, 4, 7]


def test_what_a_store_does_not_keep_is_not_copied_again(tmp_path: Path) -> None:
    """The run folder lost its best one, as on another cluster, and so keeps another that the store can do without."""
    settings = CheckpointConfig(keep_last=1, keep_best=1)
    storage = open_storage(str(tmp_path / "store"))
    losses = {1: 0.1, 2: 0.5, 3: 0.6}
    for session, steps in (("one", (1, 2)), ("two", (3,))):
        with Checkpointer(settings, tmp_path / "run", SaveGroup(0, 1, session), storage) as checkpointer:
            for step in steps:
                checkpointer.save(header(step, validation_loss=losses[step]), fragments(step))
            checkpointer.wait(required=True)
        shutil.rmtree(tmp_path / "run" / "step_00000001", ignore_errors=True)
    assert [check(path) for path in list_checkpoints(tmp_path / "run")] == [2, 3]
    assert StorePlace(storage).names() == ["step_00000001", "step_00000003"]
