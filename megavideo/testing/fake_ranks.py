"""One rank of many in a process of its own: a process group that reaches no one, for models on the meta device.

Collectives return at once and leave their outputs as they were, so that nothing but shapes can be looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megavideo.config.layout import parse_layout, stage_parts
from megavideo.config.schema.train import TrainRun
from megavideo.parallel.engines.engine import EnginePlan
from megavideo.parallel.layers.megatron import load_megatron
from megavideo.parallel.processes.groups import Groups
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.train.step import squared_error

META = torch.device("meta")


@contextmanager
def fake_rank(rank: int, world_size: int) -> Iterator[None]:
    """Within the block this process is a rank of `world_size`; no other process group may be there.

    Layers of megatron-core, which ask CUDA where to put their buffers, put them on the meta device, and may not be used
    in this process for anything else: one buffer stays.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # batched sends ask for the device's backend by name
    dist.init_process_group("cpu:fake,meta:fake", store=FakeStore(), rank=rank, world_size=world_size)
    load_megatron()
    asked, torch.cuda.current_device = torch.cuda.current_device, lambda: META  # type: ignore[assignment, return-value]
    try:
        yield
    finally:
        torch.cuda.current_device = asked
        dist.destroy_process_group()


def plan_of(config: TrainRun) -> EnginePlan:
    """The engine's plan of a stage of a run on this process; a collective call."""
    layout = parse_layout(config.layout)
    mesh = ProcessMesh.of(layout, config.model.heads, dist.get_rank(), dist.get_world_size())
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    return EnginePlan(
        layout=layout,
        mesh=mesh,
        groups=Groups.of(mesh, META),
        dtype=dtype,
        micro_steps=config.train.packs_per_step // mesh.dp,
        clip=config.optim.clip,
        token_loss=squared_error,
        head_dim=config.model.head_dim,
        layers=config.layers,
    )


def held_parts(plan: EnginePlan, num_blocks: int) -> list[range]:
    """The blocks of each pipeline stage that this process holds: two stages under DualPipeV."""
    pp, rank = plan.mesh.pp, plan.mesh.pp_rank
    if plan.layout.pp_schedule == "dualpipev" and pp > 1:
        parts = stage_parts(num_blocks, 2 * pp)
        return [parts[rank], parts[2 * pp - 1 - rank]]
    return [stage_parts(num_blocks, pp)[rank]]


def no_value(name: str, shape: torch.Size) -> torch.Tensor:
    """A start value of no memory, for parameters on the meta device."""
    return torch.empty(shape, device=META)
