"""What ranks do in the tests of late process groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

from megavideo.model.attention.cpu_flash import CPU_FLASH
from megavideo.model.attention.segments import Segments
from megavideo.parallel.layers.ring import RingPlan, ring_attend
from megavideo.parallel.processes.distributed import Launch
from megavideo.parallel.processes.groups import Groups
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.parallel.stand_in.late_call import CollectiveFault
from megavideo.parallel.stand_in.late_group import Lateness, late_process_group
from megavideo.testing import faults

RANKS = 3


def slow() -> AbstractContextManager[Launch]:
    """Late enough that nothing is done before it is looked at."""
    return late_process_group(Lateness(delay_seconds=0.1))


def impatient() -> AbstractContextManager[Launch]:
    """Late groups whose time-outs a test can wait for."""
    return late_process_group(Lateness(first_call_seconds=2.0, match_seconds=3.0))


def each_call(launch: Launch, asynchronous: bool, is_late: bool) -> dict[str, Any]:
    """What each kind of call gives; asynchronous ones are issued together, and waited for in reverse."""
    issued = list(_calls(launch.rank, asynchronous))
    if asynchronous:
        if is_late:
            for name, _, outputs in issued:
                assert all(bool(_is_spoiled(tensor)) for tensor in outputs), name
        for _, work, _ in reversed(issued):
            work.wait()
    found = {name: [tensor.tolist() for tensor in outputs] for name, _, outputs in issued}
    return found | _others(launch.rank)


def _is_spoiled(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype.is_floating_point:
        return tensor.isnan().all()
    return (tensor == torch.iinfo(tensor.dtype).max).all()


def _calls(rank: int, asynchronous: bool) -> Iterator[tuple[str, Any, list[torch.Tensor]]]:
    """Name, work and outputs of a call each."""
    whole = [torch.arange(RANKS * 4, dtype=torch.float32).view(RANKS, 4) * (rank + 1) + i for i in range(20)]
    part = torch.tensor([rank + 0.5, -rank], dtype=torch.float64)
    empty = [torch.empty(RANKS, 2, dtype=torch.float64) for _ in range(4)]
    given = {"async_op": asynchronous}
    yield "all_reduce", dist.all_reduce(whole[0], **given), [whole[0]]
    yield "max", dist.all_reduce(whole[1], op=dist.ReduceOp.MAX, **given), [whole[1]]
    counts = torch.tensor([rank, 7])
    yield "integers", dist.all_reduce(counts, **given), [counts]
    narrow = whole[2].bfloat16()
    yield "bfloat16", dist.all_reduce(narrow, **given), [narrow]
    yield "broadcast", dist.broadcast(whole[3], 1, **given), [] if rank == 1 else [whole[3]]
    yield "reduce", dist.reduce(whole[4], 2, **given), [whole[4]] if rank == 2 else []
    yield "all_gather_into_tensor", dist.all_gather_into_tensor(empty[0].view(-1), part, **given), [empty[0]]
    yield "all_gather", dist.all_gather(list(empty[1]), part, **given), [empty[1]]
    in_place = whole[5]  # the input is a part of the output
    work = dist.all_gather_into_tensor(in_place.view(-1), in_place[rank], **given)
    yield "all_gather in place", work, [in_place]
    scattered = [torch.empty(4) for _ in range(3)]
    yield "reduce_scatter_tensor", dist.reduce_scatter_tensor(scattered[0], whole[6].flatten(), **given), [scattered[0]]
    yield "reduce_scatter", dist.reduce_scatter(scattered[1], list(whole[7]), **given), [scattered[1]]
    exchanged = torch.empty(RANKS, 4)
    yield "all_to_all_single", dist.all_to_all_single(exchanged, whole[8], **given), [exchanged]
    uneven, splits = torch.empty(RANKS * (rank + 1)), list(range(1, RANKS + 1))
    work = dist.all_to_all_single(uneven, torch.arange(6.0) * (rank + 1), [rank + 1] * RANKS, splits, **given)
    yield "uneven", work, [uneven]
    gathered = list(empty[2]) if rank == 1 else None
    yield "gather", dist.gather(part, gathered, 1, **given), gathered or []
    yield "scatter", dist.scatter(scattered[2], list(whole[9]) if rank == 0 else None, 0, **given), [scattered[2]]
    if asynchronous:
        after, before = (rank + 1) % RANKS, (rank - 1) % RANKS
        received = [torch.empty(4), torch.empty(2)]
        operations = [
            dist.P2POp(dist.isend, whole[10][0], after),
            dist.P2POp(dist.irecv, received[0], before),
            dist.P2POp(dist.irecv, received[1], after),
            dist.P2POp(dist.isend, whole[11][1, :2], before),
        ]
        works = dist.batch_isend_irecv(operations)
        for work, outputs in zip(works, ([], received[:1], received[1:], []), strict=True):
            yield f"message {len(outputs)}", work, outputs
    yield "barrier", dist.barrier(**given), []
    yield "last", dist.all_reduce(whole[12], **given), [whole[12]]


def _others(rank: int) -> dict[str, Any]:
    """Calls of objects, through torch's C++, of a part of the ranks, a message waited for at once, and a future."""
    gathered: list[Any] = [None] * RANKS
    dist.all_gather_object(gathered, {"rank": rank, "text": "x" * rank})
    objects = [rank, "of the first"] if rank == 0 else [None, None]
    dist.broadcast_object_list(objects, 0)
    found: dict[str, Any] = {"all_gather_object": gathered, "broadcast_object_list": objects}
    total = functional.all_reduce(torch.full((3,), float(rank)), "sum", dist.group.WORLD)
    found["functional"] = total.tolist()
    pair = dist.new_group([0, 2])
    if rank != 1:
        value = torch.tensor([float(rank)])
        dist.all_reduce(value, group=pair)
        found["pair"] = value.tolist()
    value = torch.tensor([float(rank)])
    if rank == 0:
        dist.send(value, 1)
    if rank == 1:
        dist.recv(value, 0)
    future = dist.all_reduce(torch.ones(2), async_op=True).get_future()
    found["future"] = [value.tolist(), future.wait()[0].tolist()]
    return found


Scenario = Callable[[int, dist.ProcessGroup], None]


def breaches(launch: Launch) -> dict[str, list[str | None]]:
    """Of each breach, in a group of its own: what is told to this rank, and what at the group's destruction."""
    found = {}
    for scenario in SCENARIOS:
        group = dist.new_group([0, 1])
        if not scenario.__name__.startswith("first"):
            dist.all_reduce(torch.ones(1), group=group)
        told = [_told(lambda scenario=scenario, group=group: scenario(launch.rank, group))]
        found[scenario.__name__] = [*told, _told(lambda group=group: dist.destroy_process_group(group))]
    return found


def _told(what: Callable[[], Any]) -> str | None:
    try:
        what()
    except CollectiveFault as fault:
        return str(fault)
    return None


def nothing_wrong(rank: int, group: dist.ProcessGroup) -> None:
    dist.all_reduce(torch.ones(2), async_op=True, group=group).wait()


def input_changed(rank: int, group: dist.ProcessGroup) -> None:
    given = torch.ones(2)
    work = dist.all_gather_into_tensor(torch.empty(4), given, async_op=True, group=group)
    if rank == 0:
        given.add_(1)
    work.wait()


def sent_changed(rank: int, group: dist.ProcessGroup) -> None:
    given = torch.ones(2, 3)
    work = dist.isend(given, 1, group=group) if rank == 0 else dist.irecv(given, 0, group=group)
    if rank == 0:
        given[1, 2] = 7
    work.wait()


def sent_changed_when_done(rank: int, group: dist.ProcessGroup) -> None:
    """As a GPU's stream would not know that it is."""
    given = torch.ones(2, 3)
    work = dist.isend(given, 1, group=group) if rank == 0 else dist.irecv(given, 0, group=group)
    while rank == 0 and not work._call.done.is_set():
        pass
    if rank == 0:
        given.zero_()
    work.wait()


def output_written(rank: int, group: dist.ProcessGroup) -> None:
    total = torch.ones(2)
    work = dist.all_reduce(total, async_op=True, group=group)
    if rank == 0:
        total.fill_(3)
    work.wait()


def never_waited(rank: int, group: dist.ProcessGroup) -> None:
    work = dist.all_reduce(torch.ones(2), async_op=True, group=group)
    if rank == 0:
        group.kept = work
    else:
        work.wait()


def dropped(rank: int, group: dist.ProcessGroup) -> None:
    work = dist.all_reduce(torch.ones(2), async_op=True, group=group)
    if rank == 1:
        work.wait()
    del work
    if rank == 0:
        dist.all_reduce(torch.ones(3), group=group)


def other_operation(rank: int, group: dist.ProcessGroup) -> None:
    if rank == 0:
        dist.all_reduce(torch.ones(2), group=group)
    else:
        dist.broadcast(torch.ones(2), 0, group=group)


def other_shape(rank: int, group: dist.ProcessGroup) -> None:
    dist.all_gather_into_tensor(torch.empty(4 + 2 * rank), torch.ones(2 + rank), group=group)


def other_dtype(rank: int, group: dist.ProcessGroup) -> None:
    dist.all_reduce(torch.ones(2, dtype=[torch.float32, torch.bfloat16][rank]), group=group)


def other_root(rank: int, group: dist.ProcessGroup) -> None:
    dist.broadcast(torch.ones(2), rank, group=group)


def other_sum(rank: int, group: dist.ProcessGroup) -> None:
    dist.all_reduce(torch.ones(2), op=[dist.ReduceOp.SUM, dist.ReduceOp.MAX][rank], group=group)


def other_order(rank: int, group: dist.ProcessGroup) -> None:
    works = [dist.all_reduce(torch.ones(2 + (i + rank) % 2), async_op=True, group=group) for i in range(2)]
    for work in works:
        work.wait()


def other_splits(rank: int, group: dist.ProcessGroup) -> None:
    splits = [[1, 3], [2, 2]][rank]  # rank 1 takes 2 of the 3 that rank 0 sends
    dist.all_to_all_single(torch.empty(4), torch.ones(4), [splits[0], 4 - splits[0]], splits, group=group)


def other_message(rank: int, group: dist.ProcessGroup) -> None:
    if rank == 0:
        dist.send(torch.ones(2, 3), 1, group=group)
    else:
        dist.recv(torch.empty(3, 2), 0, group=group)


def missing_call(rank: int, group: dist.ProcessGroup) -> None:
    dist.all_reduce(torch.ones(5), group=group)
    if rank == 0:
        dist.all_reduce(torch.ones(6), group=group)


def missing_message(rank: int, group: dist.ProcessGroup) -> None:
    if rank == 1:
        dist.recv(torch.ones(2), 0, group=group)


def first_call_of_one(rank: int, group: dist.ProcessGroup) -> None:
    if rank == 0:
        dist.all_reduce(torch.ones(5), group=group)


def first_message_of_one(rank: int, group: dist.ProcessGroup) -> None:
    if rank == 1:
        dist.batch_isend_irecv([dist.P2POp(dist.isend, torch.ones(2), 0, group=group)])


def not_contiguous(rank: int, group: dist.ProcessGroup) -> None:
    dist.all_reduce(torch.ones(4, 4).T[1:], group=group)


def from_any(rank: int, group: dist.ProcessGroup) -> None:
    dist.recv(torch.ones(2), None, group=group)


def fails_in_gloo(rank: int, group: dist.ProcessGroup) -> None:
    dist.all_reduce(torch.ones(2), op=dist.ReduceOp.BAND, async_op=True, group=group).wait()


SCENARIOS: tuple[Scenario, ...] = (
    nothing_wrong, input_changed, sent_changed, sent_changed_when_done, output_written, never_waited, dropped,
    other_operation, other_shape, other_dtype, other_root, other_sum, other_order, other_splits, other_message,
    missing_call, missing_message, first_call_of_one, first_message_of_one, not_contiguous, from_any, fails_in_gloo,
)  # fmt: skip


def ring_of_some(launch: Launch, bounds: list[int], fault: bool) -> list[list[float]]:
    """Output and gradients of a rank of a ring for its run of a pack, with no other call in the ring's group."""
    with faults.first_call_by_some() if fault else nullcontext():
        groups = Groups.of(ProcessMesh(launch.rank, tp=1, ulysses=1, ring=launch.world_size, dp=1, pp=1), launch.device)
    inputs = whole_pack(bounds[-1])
    run = bounds[-1] // launch.world_size
    own = [t[launch.rank * run :][:run].clone().requires_grad_() for t in inputs]
    plan = RingPlan.of(Segments.of(bounds), run, groups.ring)
    out = ring_attend(own[0], own[1], own[2], plan, CPU_FLASH)
    out.square().sum().backward()
    return [t.flatten().tolist() for t in (out.detach(), *(t.grad for t in own if t.grad is not None))]


def whole_pack(tokens: int) -> list[torch.Tensor]:
    """Query, key and value [tokens, 2, 8]."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(tokens, 2, 8, generator=generator, dtype=torch.float64) for _ in range(3)]


def leaves_a_work(launch: Launch) -> None:
    """In the group of all ranks."""
    dist.group.WORLD.kept = dist.all_reduce(torch.ones(2), async_op=True)
