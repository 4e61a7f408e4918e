"""Saving in the background: several ranks by notes alone, events, failures, and what training waits for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from megavideo.checkpoint import notes, save_job
from megavideo.checkpoint.folder_place import FolderPlace
from megavideo.checkpoint.manifest import Header, list_checkpoints, read_manifest
from megavideo.checkpoint.place import SaveId
from megavideo.checkpoint.saver import Checkpointer, SaveGroup
from megavideo.checkpoint.snapshot import RankState, Snapshot
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.errors import CheckpointError
from tests.checkpoint.states import check, fragments, header

WORLD = 3


def config(**settings: Any) -> CheckpointConfig:
    return CheckpointConfig(**{"keep_last": 2, **settings})


def ranks(stack: ExitStack, folder: Path, settings: CheckpointConfig, **more: Any) -> list[Checkpointer]:
    """The checkpointers of three ranks, which know each other by the folder alone."""
    made = [Checkpointer(settings, folder, SaveGroup(rank, WORLD, "one"), **more) for rank in range(WORLD)]
    for checkpointer in made:
        stack.enter_context(checkpointer)
    return made


def save_all(made: list[Checkpointer], step: int, **more: Any) -> None:
    for rank, checkpointer in enumerate(made):
        checkpointer.save(header(step, **more), fragments(step, rank, WORLD))


def failing_writes(monkeypatch: pytest.MonkeyPatch, fails: Callable[[SaveId, int], bool]) -> None:
    """Have the writes of some saves on some ranks fail as on a full disk."""
    write = FolderPlace.write

    def work(self: FolderPlace, save: SaveId, rank: int, state: RankState) -> Any:
        if fails(save, rank):
            raise OSError(28, "No space left on device")
        return write(self, save, rank, state)

    monkeypatch.setattr(FolderPlace, "write", work)


def test_ranks_save_together_and_all_hear_of_it(tmp_path: Path) -> None:
    with ExitStack() as stack:
        made = ranks(stack, tmp_path, config())
        for step in (1, 2, 3):
            save_all(made, step, progress={"stage": "low", "samples": step}, validation_loss=0.5)
        for checkpointer in made:
            checkpointer.wait(required=True)
        for checkpointer in made:
            events = checkpointer.poll()
            assert [(event.step, event.failure, event.copy_failure) for event in events] == [
                (1, None, None), (2, None, None), (3, None, None)
            ]  # fmt: skip
            assert all(0 < event.blocked_seconds <= event.seconds and event.size_bytes > 0 for event in events)
            assert Path(events[-1].place) == tmp_path / "step_00000003"
            assert checkpointer.poll() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]
    assert [check(folder) for folder in list_checkpoints(tmp_path)] == [2, 3]
    manifest = read_manifest(tmp_path / "step_00000003")
    assert manifest.progress == {"stage": "low", "samples": 3}
    assert (manifest.validation_loss, manifest.stage_end, len(manifest.files)) == (0.5, False, WORLD)
    assert sum(event.size_bytes for event in events) > 0


def test_training_goes_on_while_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """States may change as soon as `save` returns, and a second save waits for the first."""
    go_on = threading.Event()
    publish = save_job.manifest_of
    monkeypatch.setattr(save_job, "manifest_of", lambda *given: (go_on.wait(20), publish(*given))[1])
    with Checkpointer(config(), tmp_path, SaveGroup(0, 1, "one")) as checkpointer:
        live = fragments(1)
        checkpointer.save(header(1), live)
        for fragment in live:
            for values in fragment.states.values():
                values.fill_(torch.nan)
        assert checkpointer.poll() == []
        assert list_checkpoints(tmp_path) == []
        threading.Timer(0.3, go_on.set).start()
        assert checkpointer.save(header(2), fragments(2)) >= 0.25
        checkpointer.wait(required=True)
    assert [check(folder) for folder in list_checkpoints(tmp_path)] == [1, 2]


def test_states_are_copied_beside_training_until_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `overlap` the copy may take long, `save` returns, and `settle` waits before the states change."""
    go_on = threading.Event()
    take = Snapshot.take
    monkeypatch.setattr(Snapshot, "take", lambda self, *given: (go_on.wait(20), take(self, *given))[1])
    with Checkpointer(config(), tmp_path, SaveGroup(0, 1, "one")) as checkpointer:
        live = fragments(1)
        assert checkpointer.save(header(1), live, overlap=True) < 5
        threading.Timer(0.3, go_on.set).start()
        assert checkpointer.settle() >= 0.25
        for fragment in live:
            for values in fragment.states.values():
                values.fill_(torch.nan)
        checkpointer.wait(required=True)
        assert checkpointer.settle() < 5
    assert check(tmp_path / "step_00000001") == 1


def test_a_synchronous_save_is_done_when_it_returns(tmp_path: Path) -> None:
    with Checkpointer(config(asynchronous=False), tmp_path, SaveGroup(0, 1, "one")) as checkpointer:
        blocked = checkpointer.save(header(1), fragments(1))
        (event,) = checkpointer.poll()
    assert check(tmp_path / "step_00000001") == 1
    assert event.blocked_seconds == event.seconds <= blocked


def test_buffers_are_used_again(tmp_path: Path) -> None:
    with Checkpointer(config(), tmp_path, SaveGroup(0, 1, "one")) as checkpointer:
        checkpointer.reserve(fragments(0))
        places = set()
        for step in (1, 2, 3):
            checkpointer.save(header(step), fragments(step))
            places.add(checkpointer._snapshot._buffer.data_ptr())
        checkpointer.wait(required=True)
    assert len(places) == 1
    assert check(tmp_path / "step_00000003") == 3


def test_a_failing_rank_gives_the_save_up_everywhere_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing_writes(monkeypatch, lambda save, rank: save.step == 2 and rank == 1)
    with ExitStack() as stack, caplog.at_level(logging.WARNING):
        made = ranks(stack, tmp_path, config())
        for step in (1, 2, 3):
            save_all(made, step)
        for checkpointer in made:
            checkpointer.wait(required=True)
            failures = [event.failure for event in checkpointer.poll()]
            assert failures == [None, "rank 1: OSError: [Errno 28] No space left on device", None]
    assert [check(folder) for folder in list_checkpoints(tmp_path)] == [1, 3]
    assert len(list(tmp_path.iterdir())) == 2
    (told,) = [record.getMessage() for record in caplog.records]
    assert "step_00000002: NOT SAVED, and the run goes on; the checkpoints before it are untouched. rank 1" in told


def test_a_save_whose_last_note_cannot_be_left_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    post = FolderPlace.post

    def refuse(self: FolderPlace, save: SaveId, note: str, text: str) -> None:
        if note == "done_00001":
            raise OSError(28, "No space left on device")
        post(self, save, note, text)

    monkeypatch.setattr(FolderPlace, "post", refuse)
    monkeypatch.setattr(notes, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(notes, "_DONE_SECONDS", 0.5)
    with ExitStack() as stack:
        made = ranks(stack, tmp_path, config())
        save_all(made, 1)
        for checkpointer in made:
            checkpointer.wait(required=True)
            assert [event.failure for event in checkpointer.poll()] == [None]
    assert [check(folder) for folder in list_checkpoints(tmp_path)] == [1]


def test_three_failures_in_a_row_end_the_run_on_every_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_writes(monkeypatch, lambda save, rank: save.step in (1, 2, 4, 5, 6) and rank == 0)
    with ExitStack() as stack:
        made = ranks(stack, tmp_path, config())
        for step in (1, 2, 3, 4, 5, 6):
            save_all(made, step)
        for rank, checkpointer in enumerate(made):
            with pytest.raises(CheckpointError, match=r"3 saves in a row failed, .*step_00000006: not saved.*rank 0"):
                checkpointer.save(header(7), fragments(7, rank, WORLD))
    assert [check(folder) for folder in list_checkpoints(tmp_path)] == [3]


@pytest.mark.parametrize(("stage_end", "required", "raises"), [(True, False, True), (False, True, True), (False,) * 3])
def test_the_last_save_of_a_stage_or_run_must_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage_end: bool, required: bool, raises: bool
) -> None:
    failing_writes(monkeypatch, lambda save, rank: True)
    with Checkpointer(config(), tmp_path, SaveGroup(0, 1, "one")) as checkpointer:
        checkpointer.save(header(1, stage_end=stage_end), fragments(1))
        if raises:
            with pytest.raises(CheckpointError, match=r"step_00000001: not saved; .*No space left.*Remedy: make room"):
                checkpointer.wait(required=required)
        else:
            checkpointer.wait(required=required)


def test_a_rank_that_says_nothing_is_waited_for_and_named(tmp_path: Path) -> None:
    with ExitStack() as stack:
        made = ranks(stack, tmp_path, config(), limit_seconds=2.0)
        for rank in (0, 1):
            made[rank].save(header(1), fragments(1, rank, WORLD))
        for rank in (0, 1):
            with pytest.raises(CheckpointError, match="rank 2: left no word in time"):
                made[rank].wait(required=True)
    assert list_checkpoints(tmp_path) == []


def test_what_a_killed_start_left_is_cleared(tmp_path: Path) -> None:
    for name in (".writing-step_00000002", ".writing-step_00000002.other-0", ".writing-removed-step_00000001"):
        (tmp_path / name / "content").mkdir(parents=True)
    with Checkpointer(config(), tmp_path, SaveGroup(0, 1, "one")) as checkpointer:
        checkpointer.save(header(4), fragments(4))
        checkpointer.wait(required=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000004"]


def test_a_checkpoint_that_was_about_to_be_replaced_comes_back(tmp_path: Path) -> None:
    """A kill between the two renames that put one in the place of another of the same step."""
    with Checkpointer(config(), tmp_path, SaveGroup(0, 1, "one")) as checkpointer:
        checkpointer.save(header(1), fragments(1))
        checkpointer.wait(required=True)
    (tmp_path / "step_00000001").rename(tmp_path / ".writing-replaced-step_00000001")
    assert list_checkpoints(tmp_path) == []
    with Checkpointer(config(), tmp_path, SaveGroup(0, 1, "two")) as checkpointer:
        checkpointer.save(header(2), fragments(2))
        checkpointer.wait(required=True)
    assert [check(folder) for folder in list_checkpoints(tmp_path)] == [1, 2]


def test_ranks_that_disagree_about_a_parameter_save_nothing(tmp_path: Path) -> None:
    with ExitStack() as stack:
        made = ranks(stack, tmp_path, config())
        save_all(made[:2], 1)
        other = fragments(1, 2, WORLD)
        object.__setattr__(other[1], "shape", (9,))
        made[2].save(Header(1, "dp2", ""), other)
        for checkpointer in made:
            with pytest.raises(CheckpointError, match=r"'b\.bias' is \(9,\) on rank 2, \(7,\) on one before it"):
                checkpointer.wait(required=True)
