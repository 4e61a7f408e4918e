"""SIGKILL at random instants while two processes save: what is listed as a checkpoint is always whole."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

import pytest

from megavideo.checkpoint.candidates import find_candidates
from megavideo.checkpoint.manifest import list_checkpoints
from megavideo.checkpoint.saver import Checkpointer, SaveGroup
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.parallel.processes.forked import end_with_parent
from tests.checkpoint.states import check, fragments, header

WORLD = 2
LONGEST_SECONDS = 0.3  # from the first sign of a save to the kill; a save takes 20 ms on an idle machine


def save_forever(rank: int, folder: Path, session: str, first: int) -> None:
    """Save one step after another; the same step again now and then, so that a checkpoint is replaced."""
    import torch

    end_with_parent()
    torch.set_num_threads(1)
    with Checkpointer(CheckpointConfig(keep_last=2), folder, SaveGroup(rank, WORLD, session)) as checkpointer:
        step = first
        while True:
            checkpointer.save(header(step), fragments(step, rank, WORLD))
            step += step % 3 != 0 or checkpointer._num_saves % 2


def is_saving(folder: Path, attempt: int, newest: int) -> bool:
    """Whether a start has begun its first save, and for the first of all whether that is done."""
    done = any(int(path.name[-8:]) > newest for path in list_checkpoints(folder))
    return done or (attempt > 0 and any(folder.glob(f".writing-*.start{attempt}-*")))


def kill_again_and_again(folder: Path, times: int) -> list[int]:
    """The newest step after each kill, and that everything listed is whole."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["megavideo.parity.preload", "tests.checkpoint.states"])
    chance, newest, found = random.Random(0), 0, []
    for attempt in range(times):
        processes = [
            context.Process(target=save_forever, args=(rank, folder, f"start{attempt}", newest + 1), daemon=True)
            for rank in range(WORLD)
        ]
        for process in processes:
            process.start()
        while not is_saving(folder, attempt, newest):
            time.sleep(0.002)
        time.sleep(chance.uniform(0.0, LONGEST_SECONDS))
        for process in chance.sample(processes, WORLD):
            process.kill()
            time.sleep(chance.choice((0.0, 0.0, 0.02)))
        for process in processes:
            process.join()
        find_candidates(folder, None)  # as a resume does
        steps = [check(path) for path in list_checkpoints(folder)]
        assert steps, f"no checkpoint after kill {attempt}"
        assert steps[-1] >= newest, f"step {newest} is gone after kill {attempt}"
        newest = steps[-1]
        found.append(newest)
    return found


def check_kills(folder: Path, times: int) -> None:
    found = kill_again_and_again(folder, times)
    print(f"{times} kills: the newest step went from {found[0]} to {found[-1]}")
    assert found[-1] > found[0]  # it was saving when it was killed
    with Checkpointer(CheckpointConfig(keep_last=2), folder, SaveGroup(0, 1, "last")) as checkpointer:
        checkpointer.save(header(found[-1] + 1), fragments(found[-1] + 1))
        checkpointer.wait(required=True)
    assert [check(path) for path in list_checkpoints(folder)][-1] == found[-1] + 1
    assert not list(folder.glob(".*"))  # and what the kills left is cleared


def test_a_few_kills(tmp_path: Path) -> None:
    check_kills(tmp_path, 8)


@pytest.mark.slow
def test_two_hundred_kills(tmp_path: Path) -> None:
    check_kills(tmp_path, 200)
