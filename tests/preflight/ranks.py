"""Preflights by real processes of this machine, each of which takes itself for another node."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from megavideo.config.load import load
from megavideo.config.schema.preflight import PreflightRun
from megavideo.parallel.processes.distributed import free_port
from megavideo.parallel.processes.forked import end_with_parent
from megavideo.preflight import run
from megavideo.preflight.judge import PreflightReport
from megavideo.preflight.links import exchange_bytes
from megavideo.preflight.run import preflight

# nothing that depends on how busy this machine is
CALM = ["limits.output_gb=0", "limits.cache_gb=0", "limits.shm_gb=0", "limits.matmul_factor=1e6",
        "limits.link_share=0.0001", "limits.clock_seconds=10", "link_mb=0.2", "data.retry_seconds=1"]  # fmt: skip
_SECONDS = 150.0


@dataclass(frozen=True)
class Rank:
    """What is particular to one rank: settings, variables, its clock, and pairs that it finds slow.

    `as_nccl`: the first call of its group waits in it for all ranks. `never_connects`: that call has no end.
    `hung_reads`: neither has a read of the dataset.
    """

    words: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    clock_ahead_seconds: float = 0.0
    slow_peers: Sequence[int] = ()
    as_nccl: bool = False
    never_connects: bool = False
    hung_reads: bool = False


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
        with _connecting(own, count):
            pipe.send(preflight(config, lambda own=own: time.time() + own.clock_ahead_seconds, _exchange(own)))
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _connecting(own: Rank, count: int) -> Iterator[None]:
    """NCCL makes a communicator in the first call of a group, and waits there, in the host, for every rank of it."""
    came = threading.Event()

    def connected(call: Callable[..., Any]) -> Callable[..., Any]:
        def connect(*given: Any, **options: Any) -> Any:
            if own.never_connects:
                threading.Event().wait()
            if not came.is_set():
                came.set()
                store = dist.distributed_c10d._get_default_store()
                store.add("came", 1)
                while store.add("came", 0) < count:
                    time.sleep(0.02)
            return call(*given, **options)

        return connect

    with ExitStack() as stack:
        if own.hung_reads:
            stack.enter_context(patch.object(run, "read_dataset", lambda *given: threading.Event().wait()))
        for name in ("all_reduce", "batch_isend_irecv") if own.as_nccl else ():
            stack.enter_context(patch.object(dist, name, connected(getattr(dist, name))))
        yield


def _exchange(own: Rank) -> Callable[[torch.Tensor, torch.Tensor, int], None]:
    def exchange(sent: torch.Tensor, received: torch.Tensor, peer: int) -> None:
        if peer in own.slow_peers:
            time.sleep(0.6)
        exchange_bytes(sent, received, peer)

    return exchange
