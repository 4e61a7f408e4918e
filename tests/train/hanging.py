"""A rank that makes steps of one all-reduce each, watched; `MODE` says what becomes of them.

`steps` goes on for ever, `reading` leaves rank 1 in something else than a collective at step 5, and `alone` makes no
step at all in one process. `slow_store` and `stuck_store` save at step 5 to a store which on rank 1 takes three times
the limit, or never comes to an end after its first pieces, and wait for it; nothing follows. Rows of a hang go to
FOLDER/faults.jsonl, the steps of each rank to FOLDER/RANK.txt.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from megavideo.checkpoint.saver import Checkpointer, SaveGroup
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.data.storage.local import LocalStorage
from megavideo.observe.faults import FaultLog
from megavideo.parallel.processes.distributed import leave, own_store, process_group
from megavideo.train.health.watchdog import SAVING, Hang, Watchdog
from tests.checkpoint.states import fragments, header

_PIECES = 12


class _SlowStorage(LocalStorage):
    """A folder to which every file of a rank takes `seconds`, in pieces; a stuck one does not go on after a few."""

    def __init__(self, folder: Path, seconds: float, stuck: bool) -> None:
        super().__init__(folder)
        self._seconds = seconds
        self._stuck = stuck

    def write_bytes(self, name: str, data: bytes, on_progress: Callable[[], None] | None = None) -> None:
        """Slowly where it is a file, not a note."""
        for number in range(_PIECES if on_progress is not None else 0):
            time.sleep(1e6 if self._stuck and number == 3 else self._seconds / _PIECES)
            assert on_progress is not None
            on_progress()
        super().write_bytes(name, data)


def _steps(mode: str, rank: int, dog: Watchdog, log: Path) -> None:
    with log.open("w", buffering=1) as file:
        for step in range(100_000):
            dog.beat(step, "reading")
            if mode == "reading" and step == 5 and rank == 1:
                time.sleep(1e6)
            dog.beat(step, "training")
            dist.all_reduce(torch.ones(1000))
            file.write(f"{step}\n")
            time.sleep(0.02)


def _save(checkpointer: Checkpointer, rank: int, dog: Watchdog) -> None:
    for step in range(5):
        dog.beat(step, "training")
        dist.all_reduce(torch.ones(1000))
    dog.beat(5, SAVING)
    checkpointer.save(header(5), fragments(5, rank, 2))
    checkpointer.wait(required=True)


def main(folder: Path, mode: str, seconds: float) -> None:
    with process_group(timedelta(minutes=5)) as launch:
        rank, world_size = launch.rank, launch.world_size

        def report(hang: Hang) -> None:
            FaultLog(folder / "faults.jsonl").write(hang.step, "hang", **hang.fields())

        storage = _SlowStorage(folder / "store", 3 * seconds if rank == 1 else 0.0, mode == "stuck_store" and rank == 1)
        config = CheckpointConfig(through_folder=False)
        checkpointer = Checkpointer(config, folder / "checkpoints", SaveGroup(rank, world_size, "one"), storage)
        known = (rank, world_size, socket.gethostname(), report, own_store("watchdog"))
        with Watchdog(seconds, *known, lambda: checkpointer.pieces) as dog:
            if mode.endswith("store"):
                _save(checkpointer, rank, dog)
                return
            if mode == "alone":
                (folder / "0.txt").write_text("started\n")
                time.sleep(1e6)
            _steps(mode, rank, dog, folder / f"{rank}.txt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
    leave(0)
