"""A rank that makes steps of one all-reduce each, watched; `MODE` says what becomes of them.

`steps` goes on for ever, `reading` leaves rank 1 in something else than a collective at step 5, and `alone` makes no
step at all in one process. Rows of a hang go to FOLDER/faults.jsonl, the steps of each rank to FOLDER/RANK.txt.
"""

from __future__ import annotations

import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from megavideo.observe.faults import FaultLog
from megavideo.parallel.processes.distributed import leave, own_store, process_group
from megavideo.train.health.watchdog import Hang, Watchdog


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


def main(folder: Path, mode: str, seconds: float) -> None:
    with process_group(timedelta(minutes=5)) as launch:
        rank, world_size = launch.rank, launch.world_size

        def report(hang: Hang) -> None:
            FaultLog(folder / "faults.jsonl").write(hang.step, "hang", **hang.fields())

        with Watchdog(seconds, rank, world_size, socket.gethostname(), report, own_store("watchdog")) as dog:
            if mode == "alone":
                (folder / "0.txt").write_text("started\n")
                time.sleep(1e6)
            _steps(mode, rank, dog, folder / f"{rank}.txt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
    leave(0)
