"""The process groups of a mesh: the only place where groups are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megavideo.parallel.processes.mesh import Axis, ProcessMesh

# the axes along which each group runs
_AXES: dict[str, tuple[Axis, ...]] = {
    "tp": ("tp",),
    "ulysses": ("ulysses",),
    "ring": ("ring",),
    "cp": ("ulysses", "ring"),
    "data": ("ulysses", "ring", "dp"),
    "replica": ("tp", "pp"),
    "model": ("tp", "ulysses", "ring", "pp"),
}


@dataclass(frozen=True)
class Groups:
    """This process's group along each axis or product of axes.

    `cp` holds the ranks that share a pack's tokens out (sequence parallel aside). `data` is DeepSpeed's data axis,
    dp x cp, over which gradients are averaged; `replica` holds one copy of the parameters; `model` holds the processes
    that train on the same packs.
    """

    tp: dist.ProcessGroup
    ulysses: dist.ProcessGroup
    ring: dist.ProcessGroup
    cp: dist.ProcessGroup
    data: dist.ProcessGroup
    replica: dist.ProcessGroup
    model: dist.ProcessGroup

    @classmethod
    def of(cls, mesh: ProcessMesh, device: torch.device) -> Groups:
        """Make the groups, and the communicators behind them; a collective call of all processes."""
        made: dict[tuple[int, ...], dist.ProcessGroup] = {}
        mine: dict[str, dist.ProcessGroup] = {}
        for name, axes in _AXES.items():
            for ranks in mesh.groups(*axes):
                # every process makes every group, in one order; equal sets share one
                if ranks not in made:
                    made[ranks] = dist.new_group(list(ranks))
                if mesh.rank in ranks:
                    mine[name] = made[ranks]
        # the engine of a pipeline sends in the group of all
        _make_communicators([dist.group.WORLD, *(made[ranks] for ranks in made if mesh.rank in ranks)], device)
        return cls(**mine)


def make_group(mesh: ProcessMesh, axes: Sequence[Axis], device: torch.device) -> dist.ProcessGroup:
    """One further group along a product of axes, for those few runs that need it; a collective call of all processes.

    Each costs memory on a GPU, which is why the others do not have it.
    """
    # every process makes every group
    groups = {ranks: dist.new_group(list(ranks)) for ranks in mesh.groups(*axes)}
    mine = groups[mesh.peers(*axes)]
    _make_communicators([mine], device)
    return mine


def _make_communicators(groups: Sequence[Any], device: torch.device) -> None:
    """The first call of each group, by all of its ranks.

    NCCL makes a group's communicator at its first call and waits in it for every rank. A ring's first exchange may be
    one of some ranks only, those whose runs share a segment. The groups are in one order on all ranks, without which
    they would wait for each other.
    """
    for group in groups:
        if group.size() > 1:
            dist.all_reduce(torch.zeros((), device=device), group=group)


def destroy_groups() -> None:
    """Destroy every group but that of all processes; a collective call, after which nothing may use them.

    Until then each keeps device memory with NCCL, and two threads with gloo.
    """
    dist.barrier()  # a rank that is ahead would leave the others in their last collective
    world = dist.group.WORLD
    made = [group for group in dist.distributed_c10d._world.pg_map if group is not world]
    for group in reversed(made):
        dist.destroy_process_group(group)
