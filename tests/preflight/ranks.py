"""Preflights by real processes of this machine, each of which takes itself for another node."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

from megavideo.config.load import load
from megavideo.config.schema.preflight import PreflightRun
from megavideo.parallel.processes.distributed import free_port
from megavideo.parallel.processes.forked import end_with_parent
from megavideo.preflight.judge import PreflightReport
from megavideo.preflight.links import exchange_bytes
from megavideo.preflight.run import preflight

# nothing that depends on how busy this machine is
CALM = ["limits.output_gb=0", "limits.cache_gb=0", "limits.shm_gb=0", "limits.matmul_factor=1e6",
        "limits.link_share=0.0001", "limits.clock_seconds=10", "link_mb=0.2", "data.retry_seconds=1"]  # fmt: skip
_SECONDS = 150.0


@dataclass(frozen=True)
class Rank:
    """What is particular to one rank: settings, variables, its clock, and pairs that it finds slow."""

    words: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    clock_ahead_seconds: float = 0.0
    slow_peers: Sequence[int] = ()


class Ranks:
    """`count` processes, forked from one that has made the imports."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.preflight.ranks"])
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for rank in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, count), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, words: Sequence[str], ranks: dict[int, Rank | None] | None = None) -> dict[int, PreflightReport]:
        """The report of each rank; one that is None in `ranks` does not come."""
        particular = {rank: (ranks or {}).get(rank, Rank()) for rank in range(len(self._pipes))}
        port = free_port()
        there = [rank for rank, own in particular.items() if own is not None]
        for rank in there:
            self._pipes[rank].send((port, [*CALM, *words], particular[rank]))
        end, reports = time.monotonic() + _SECONDS, {}
        for rank in there:
            assert self._pipes[rank].poll(max(0.0, end - time.monotonic())), f"rank {rank} hangs"
            reports[rank] = self._pipes[rank].recv()
        return reports

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()


def _serve(pipe: Connection, rank: int, count: int) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    launch = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(launch, SLURMD_NODENAME=f"n{rank}", SLURM_STEP_NODELIST=f"n[0-{count - 1}]")
    while True:
        port, words, own = pipe.recv()
        before = dict(os.environ)
        os.environ.update(own.environment, MASTER_PORT=str(port))
        given = {word.partition("=")[0]: word for word in [*words, *own.words]}  # what is said last counts
        config = load(PreflightRun, "preflight", list(given.values()))
        pipe.send(preflight(config, lambda own=own: time.time() + own.clock_ahead_seconds, _exchange(own)))
        os.environ.clear()
        os.environ.update(before)


def _exchange(own: Rank) -> Callable[[torch.Tensor, torch.Tensor, int, float], None]:
    def exchange(sent: torch.Tensor, received: torch.Tensor, peer: int, seconds: float) -> None:
        if peer in own.slow_peers:
            time.sleep(0.6)
        exchange_bytes(sent, received, peer, seconds)

    return exchange
