"""A snapshot holds the states of its step, copied beside training: exactly, or the save says why it is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from megavideo.checkpoint.manifest import list_checkpoints
from megavideo.checkpoint.saver import Checkpointer, SaveGroup
from megavideo.checkpoint.snapshot import Snapshot
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.device.copies import DeviceCopies
from megavideo.device.cpu_copies import CpuCopies
from megavideo.device.cuda_copies import CudaCopies
from megavideo.device.late_copies import LateCopies
from megavideo.parallel.engines.fragments import Fragment
from tests.checkpoint.states import check, fragments, header
from tests.device.fake_cuda import COMPUTE, DEVICE, OUTWARD, FakeCuda, FakeEvent

STAND_INS = {"cpu": CpuCopies(), "late": LateCopies(), "delayed": LateCopies(0.1)}


def checkpointer(folder: Path, copies: DeviceCopies) -> Checkpointer:
    config = CheckpointConfig(keep_last=9)
    return Checkpointer(config, folder, SaveGroup(0, 1, "one"), choose=lambda device: copies)


def tensors(live: list[Fragment]) -> Iterator[torch.Tensor]:
    for fragment in live:
        yield from (*fragment.states.values(), fragment.steps)


def update(live: list[Fragment], step: int) -> None:
    """The states of another step into the live ones."""
    for old, new in zip(tensors(live), tensors(fragments(step)), strict=True):
        old.copy_(new)


@pytest.mark.parametrize("copies", STAND_INS.values(), ids=STAND_INS)
def test_states_that_change_right_after_settling_are_saved_as_they_were(tmp_path: Path, copies: DeviceCopies) -> None:
    live = fragments(1)
    with checkpointer(tmp_path, copies) as saves:
        saves.reserve(live)
        for step in (1, 2, 3):
            saves.save(header(step), live, overlap=True)
            saves.settle()
            update(live, step + 1)
        saves.wait(required=True)
        assert [event.failure for event in saves.poll()] == [None] * 3
    assert [check(folder) for folder in list_checkpoints(tmp_path)] == [1, 2, 3]


def test_an_update_that_does_not_wait_is_caught(tmp_path: Path) -> None:
    live = fragments(1)
    with checkpointer(tmp_path, LateCopies(0.5)) as saves:
        saves.save(header(1), live, overlap=True)
        update(live, 2)  # without `settle`
        saves.wait()
        (event,) = saves.poll()
    assert event.failure is not None and "changed before it was copied" in event.failure
    assert list_checkpoints(tmp_path) == []


def test_states_and_counts_are_read_where_they_are() -> None:
    """Those of the host beside those of a device, in one buffer, and counts without waiting for the device."""
    asked: list[torch.device] = []

    def choose(device: torch.device) -> DeviceCopies:
        asked.append(device)
        return LateCopies()

    state = Snapshot(choose=choose).take(fragments(7))
    assert (state.steps, asked) == (7, [torch.device("cpu")])
    taken = {saved.entry.key: state.buffer[saved.begin : saved.end].view(saved.dtype) for saved in state.files[0]}
    for fragment in fragments(7):
        for name, values in fragment.states.items():
            (key,) = [key for key in taken if key.startswith(f"{name}/{fragment.name}/")]
            assert torch.equal(taken[key], values)
    assert Snapshot().take([]).steps == 0


class Training:
    """States of a GPU whose updates are queued, and a checkpointer that saves them beside what is queued."""

    def __init__(self, cuda: FakeCuda, folder: Path) -> None:
        self._cuda = cuda
        self.live = fragments(0)
        for fragment in self.live:
            for name, values in fragment.states.items():
                fragment.states[name] = cuda.tensor(values)
            object.__setattr__(fragment, "steps", cuda.tensor(fragment.steps))
        self.saves = checkpointer(folder, CudaCopies(DEVICE))

    def update(self, step: int) -> None:
        """Queue it."""
        for old, new in zip(tensors(self.live), tensors(fragments(step)), strict=True):
            place, values = self._cuda.array(old), new.reshape(-1).view(torch.uint8).numpy()
            self._cuda.run(lambda place=place, values=values: np.copyto(place, values))


def saved_steps(cuda: FakeCuda, folder: Path) -> list[int]:
    """Two steps are made and saved; those whose checkpoint has the right values."""
    training = Training(cuda, folder)
    with training.saves as saves:
        for step in (1, 2):
            training.update(step)
            saves.save(header(step), training.live, overlap=True)
            cuda.run(lambda: None)  # the passes of the next step
            saves.settle()
        training.update(3)
        cuda.finish()
        saves.wait()
    found = []
    for path in list_checkpoints(folder):
        try:
            found.append(check(path))
        except AssertionError:
            continue
    return found


@pytest.mark.parametrize("seed", range(4))
def test_on_streams_each_step_is_saved_exactly(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(seed)
    cuda.install(monkeypatch)
    assert saved_steps(cuda, tmp_path) == [1, 2]


@pytest.mark.parametrize("dropped", [(OUTWARD, COMPUTE), "host"])
def test_an_order_left_out_shows(tmp_path: Path, dropped: object, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for seed in range(4):
        cuda = FakeCuda(seed, [dropped])
        with monkeypatch.context() as patch:
            cuda.install(patch)
            found += saved_steps(cuda, tmp_path / str(seed))
    assert found != [1, 2] * 4


def test_settling_waits_for_the_copies_and_not_for_the_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    training = Training(cuda, tmp_path)
    with training.saves as saves:
        training.update(1)
        saves.save(header(1), training.live, overlap=True)
        cuda.compute.put(FakeEvent(cuda))  # passes that do not end
        saves.settle()
        assert cuda.compute.queue
        saves.wait(required=True)
    assert check(tmp_path / "step_00000001") == 1
