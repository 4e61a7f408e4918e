"""Starts two ranks of which one computes for ever and one waits for it, each with its pid in FOLDER/RANK.pid."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from megavideo.parallel.distributed import Launch
from megavideo.testing.ranks import run_ranks


def stay(launch: Launch, folder: str) -> None:
    (Path(folder) / f"{launch.rank}.pid").write_text(str(os.getpid()))
    if launch.rank == 0:
        while True:
            torch.ones(500, 500) @ torch.ones(500, 500)
    dist.barrier()


if __name__ == "__main__":
    run_ranks(stay, (sys.argv[1],), Path(sys.argv[1]), processes=2)
