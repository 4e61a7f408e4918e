"""The process groups of a mesh: the only place where groups are made."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist

from megavideo.parallel.processes.mesh import Axis, ProcessMesh

# the axes along which each group runs
_AXES: dict[str, tuple[Axis, ...]] = {
    "tp": ("tp",),
    "ulysses": ("ulysses",),
    "ring": ("ring",),
    "data": ("ulysses", "ring", "dp"),
    "replica": ("tp", "pp"),
    "model": ("tp", "ulysses", "ring", "pp"),
}


@dataclass(frozen=True)
class Groups:
    """This process's group along each axis or product of axes.

    `data` is DeepSpeed's data axis, dp x cp, over which gradients are averaged; `replica` holds one copy of the
    parameters; `model` holds the processes that train on the same packs.
    """

    tp: dist.ProcessGroup
    ulysses: dist.ProcessGroup
    ring: dist.ProcessGroup
    data: dist.ProcessGroup
    replica: dist.ProcessGroup
    model: dist.ProcessGroup

    @classmethod
    def of(cls, mesh: ProcessMesh) -> Groups:
        """Make the groups; a collective call of all processes."""
        made: dict[tuple[int, ...], dist.ProcessGroup] = {}
        mine: dict[str, dist.ProcessGroup] = {}
        for name, axes in _AXES.items():
            for ranks in mesh.groups(*axes):
                # every process makes every group, in one order; equal sets share one
                if ranks not in made:
                    made[ranks] = dist.new_group(list(ranks))
                if mesh.rank in ranks:
                    mine[name] = made[ranks]
        return cls(**mine)


def destroy_groups() -> None:
    """Destroy every group but that of all processes; a collective call, after which nothing may use them.

    Until then each keeps device memory with NCCL, and two threads with gloo.
    """
    dist.barrier()  # a rank that is ahead would leave the others in their last collective
    world = dist.group.WORLD
    made = [group for group in dist.distributed_c10d._world.pg_map if group is not world]
    for group in reversed(made):
        dist.destroy_process_group(group)
