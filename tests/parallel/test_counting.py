"""What each kind of call counts, between three processes; and what a count is for."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import nn

from megavideo.parallel.counting import Sending, counting_process_group
from megavideo.parallel.processes.distributed import free_port, leave
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.testing.ranks import PRELOAD

RANKS = 3
PART = 6 * 4  # bytes of six float32, one rank's part
WHOLE = RANKS * PART


def _calls(rank: int) -> None:
    """One call of each kind, from Python, asynchronous, from C++ and in object form."""
    part, whole = torch.full((6,), float(rank)), torch.ones(RANKS * 6)
    dist.all_reduce(whole)
    dist.all_gather_into_tensor(whole, part)
    assert whole.tolist() == [float(i) for i in range(RANKS) for _ in range(6)]
    dist.all_gather(list(torch.empty(RANKS, 6)), part)
    dist.reduce_scatter_tensor(part, whole, async_op=True).wait()
    dist.reduce_scatter(part, list(whole.view(RANKS, 6)))
    dist.all_to_all_single(torch.empty_like(whole), whole)
    dist.all_to_all_single(torch.empty(RANKS * (rank + 1)), torch.ones(6), [rank + 1] * RANKS, [1, 2, 3])
    dist.reduce(whole, 1)
    dist.broadcast(part, 0)
    dist.gather(part, list(torch.empty(RANKS, 6)) if rank == 2 else None, 2)
    received = torch.empty(6)
    after, before = (rank + 1) % RANKS, (rank - 1) % RANKS
    operations = [dist.P2POp(dist.isend, part, after), dist.P2POp(dist.irecv, received, before)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    functional.all_reduce(torch.ones(5), "sum", dist.group.WORLD).sum()
    dist.barrier()
    # a call that is not counted does not get through
    with pytest.raises(RuntimeError, match="backend"):
        dist.group.WORLD.monitored_barrier()


class _Calls(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(torch.ones(1))
        x.register_hook(lambda grad: (dist.all_reduce(torch.ones(2)), None)[1])
        return x * 2


def _process(rank: int, port: int, answer: Connection) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    mesh = ProcessMesh(rank=rank, tp=RANKS, ulysses=1, ring=1, dp=1, pp=1)
    with counting_process_group() as (_, counter):
        dist.all_reduce(torch.ones(1000))
        model = _Calls()
        counter.start(model)
        _calls(rank)
        made = counter.sent_bytes(mesh)
        counter.start(model)
        model(torch.ones(3, requires_grad=True)).sum().backward()
        dist.all_reduce(torch.ones(3))
        answer.send((made, counter.sent_bytes(mesh)))
    leave(0)


@pytest.fixture(scope="module")
def sent() -> list[tuple[dict[str, float], dict[str, float]]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    port, pipes = free_port(), [context.Pipe(duplex=False) for _ in range(RANKS)]
    processes: list[Any] = [
        context.Process(target=_process, args=(rank, port, pipes[rank][1]), daemon=True) for rank in range(RANKS)
    ]
    for process, (_, writer) in zip(processes, pipes, strict=True):
        process.start()
        writer.close()  # a process that dies is an EOFError here
    try:
        assert all(reader.poll(60) for reader, _ in pipes)
        return [reader.recv() for reader, _ in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()


@pytest.mark.parametrize("rank", range(RANKS))
def test_each_call_counts_what_a_good_algorithm_sends(sent: list[tuple[dict[str, float], Any]], rank: int) -> None:
    others = (RANKS - 1) / RANKS
    assert sent[rank][0] == pytest.approx({
        "tp/all_reduce/between/18": 2 * others * WHOLE,
        "tp/all_gather/between/6": 2 * others * WHOLE,
        "tp/reduce_scatter/between/18": others * WHOLE,
        "tp/reduce_scatter/between/6": others * WHOLE,
        "tp/all_to_all/between/18": others * WHOLE,
        "tp/all_to_all/between/6": PART - (rank + 1) * 4,
        "tp/reduce/between/18": WHOLE if rank != 1 else 0,
        "tp/broadcast/between/6": others * PART,
        "tp/gather/between/6": PART if rank != 2 else 0,
        "tp/send/between/6": PART,
        "tp/all_reduce/between/5": 2 * others * 5 * 4,
    })  # fmt: skip


def test_phases_follow_the_model(sent: list[tuple[Any, dict[str, float]]]) -> None:
    each = 2 * (RANKS - 1) / RANKS * 4
    assert sent[0][1] == pytest.approx({
        "tp/all_reduce/forward/1": each, "tp/all_reduce/backward/2": 2 * each, "tp/all_reduce/between/3": 3 * each,
    })  # fmt: skip


def test_purpose_of_a_sending_follows_from_who_takes_part() -> None:
    mesh = ProcessMesh(rank=0, tp=2, ulysses=2, ring=2, dp=2, pp=2)
    peers = mesh.peers

    def purpose(ranks: tuple[int, ...], operation: str) -> str:
        return Sending(ranks, operation, "forward", ()).purpose(mesh)

    assert purpose(peers("tp"), "all_reduce") == "tp"
    assert purpose(peers("ulysses"), "all_to_all") == "ulysses"
    assert purpose(peers("ulysses"), "all_gather") == purpose(peers("ulysses", "ring", "dp"), "all_reduce") == "data"
    assert purpose(peers("ring"), "send") == "ring"
    assert purpose(peers("pp"), "send") == "pipeline"
    assert purpose(peers("tp", "pp"), "all_reduce") == "model"
    assert purpose(tuple(range(32)), "broadcast") == "model"
