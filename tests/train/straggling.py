"""Ranks that compute and meet in every step; rank 2 has `WORK` times as much to do. Rank 0 writes who was named."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from megavideo.config.schema.guard import GuardConfig
from megavideo.parallel.processes.distributed import leave, process_group
from megavideo.train.health.stragglers import Stragglers

STEPS, EVERY = 20, 10


def main(path: Path, phase: str, work: int, factor: float) -> None:
    with process_group() as launch:
        slow = Stragglers(GuardConfig(straggler_every=EVERY, straggler_factor=factor), launch)
        times = work if launch.rank == 2 else 1
        square = torch.randn(256, 256)
        named, costs = [], []

        def inputs():  # type: ignore[no-untyped-def]
            for step in range(STEPS):
                if phase == "data":
                    time.sleep(0.02 * times)
                yield step

        for _ in slow.reading(inputs()):
            with slow.working("compute"):
                for _ in range(20 * times if phase == "compute" else 20):
                    square @ square
                dist.all_reduce(torch.ones(10))
            dist.barrier()
            begin = time.perf_counter()
            named += slow.step()
            costs.append(time.perf_counter() - begin)
        if launch.rank == 0:
            path.write_text(json.dumps({"named": [asdict(one) for one in named], "costs": costs}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    leave(0)
