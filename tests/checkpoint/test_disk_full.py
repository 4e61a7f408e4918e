"""A disk that is full while a checkpoint is written: a real small file system where this user may mount one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch

from megavideo.checkpoint.manifest import list_checkpoints
from megavideo.checkpoint.saver import Checkpointer, SaveGroup
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.parallel.engines.fragments import Fragment
from megavideo.parallel.layers.sharding import WHOLE
from tests.checkpoint.states import check, fragments, header
from tests.full_disk import fill


def large(step: int, rank: int) -> list[Fragment]:
    """20 MB, of which each of two ranks has a half."""
    numel = (10 << 20) // 4
    values = torch.full((numel,), float(step))
    return [Fragment("w", (2 * numel,), WHOLE, rank * numel, {"weight": values}, torch.tensor(float(step)))]


def test_a_full_disk_ends_no_run_and_no_checkpoint(small_disk: Path) -> None:
    """Both ranks find no room, for the file and maybe for the note; afterwards the run saves as before."""
    folder = small_disk / "checkpoints"
    settings = CheckpointConfig(keep_last=1)
    made = [Checkpointer(settings, folder, SaveGroup(rank, 2, "one")) for rank in (0, 1)]
    for step, big in ((1, False), (2, True), (3, True), (4, False)):
        for rank, checkpointer in enumerate(made):
            checkpointer.save(header(step), large(step, rank) if big else fragments(step, rank, 2))
    for checkpointer in made:
        checkpointer.wait(required=True)
        events = checkpointer.poll()
        assert [event.step for event in events if event.failure] == [2, 3]
        assert all("No space left on device" in str(event.failure) for event in events if event.failure)
        checkpointer.close()
    assert [check(path) for path in list_checkpoints(folder)] == [4]
    assert [path.name for path in folder.iterdir()] == ["step_00000004"]


def test_a_disk_without_any_room_left(small_disk: Path) -> None:
    """Not even a note's text has room; what was saved before stays whole."""
    folder = small_disk / "checkpoints"
    with Checkpointer(CheckpointConfig(keep_last=2), folder, SaveGroup(0, 1, "one")) as checkpointer:
        checkpointer.save(header(1), fragments(1))
        checkpointer.wait(required=True)
        fill(small_disk)
        checkpointer.save(header(2), fragments(2))
        checkpointer.wait()
        (small_disk / "filler").unlink()
        checkpointer.save(header(3), fragments(3))
        checkpointer.wait(required=True)
        assert [event.failure is None for event in checkpointer.poll()] == [True, False, True]
    assert [check(path) for path in list_checkpoints(folder)] == [1, 3]


def test_a_disk_that_becomes_read_only_is_named_by_every_rank(small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    made = [Checkpointer(CheckpointConfig(), folder, SaveGroup(rank, 2, "one")) for rank in (0, 1)]
    for step in (1, 2):
        for rank, checkpointer in enumerate(made):
            checkpointer.save(header(step), fragments(step, rank, 2))
        for checkpointer in made:
            checkpointer.wait()
        if step == 1:
            subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for checkpointer in made:
        (failure,) = [event.failure for event in checkpointer.poll() if event.step == 2]
        assert failure is not None and "Read-only file system" in failure and "FileNotFoundError" not in failure
        checkpointer.close()
    assert [check(path) for path in list_checkpoints(folder)] == [1]
