"""Forks two ranks of which one computes for ever and one sleeps, each with its pid in FOLDER/RANK.pid, and waits."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path

from megavideo.parallel.processes.forked import become_rank


def stay(rank: int, folder: str) -> None:
    become_rank(rank, 2, 0)
    (Path(folder) / f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    while rank == 0:
        pass
    time.sleep(1e6)


if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    ranks = [context.Process(target=stay, args=(rank, sys.argv[1])) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
