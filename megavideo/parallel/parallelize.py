"""A model under a layout, in one visible order: layers, stages, weights, engine."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from megavideo.model.dit import DiT
from megavideo.model.layers import Layers, LocalLayers
from megavideo.parallel.engines.engine import BaseOptimizer, DataEngine, Engine, EnginePlan
from megavideo.parallel.engines.pipeline import PipeEngine
from megavideo.parallel.layers.sharding import shard_of
from megavideo.parallel.layers.te_layers import build_layers, keep_excluded_in_bf16

# from a name and the whole shape to the whole start value, alike on every rank
StartValue = Callable[[str, torch.Size], torch.Tensor]


def parallelize(
    build: Callable[[Layers, range], DiT],
    num_blocks: int,
    start: StartValue,
    optimizer: Callable[[nn.Module], BaseOptimizer],
    plan: EnginePlan,
    device: torch.device,
) -> Engine:
    """Build this process's part of a model and its engine; a collective call of all processes.

    Raises ConfigError where this machine cannot run the layers that are asked for.
    """
    log, mesh = logging.getLogger(__name__), plan.mesh
    # 1. which layers: those of one process, or those that share heads and tokens out
    layers: Layers = LocalLayers()
    if mesh.tp * mesh.cp > 1 or plan.layers.engine != "local":
        layers = build_layers(plan.layers, mesh, plan.groups, device)
        log.info("layers: tp %d, sp %s, ulysses %d, ring %d", mesh.tp, mesh.sp, mesh.ulysses, mesh.ring)

    # 2. and 3. the blocks that this process holds, with its shards of the same weights under every layout
    def stage(part: range) -> DiT:
        model = build(layers, part)
        in_fp8 = keep_excluded_in_bf16(model, plan.layers)
        fill_weights(model, start, tp_rank=mesh.tp_rank, tp=mesh.tp)
        log.info("blocks %d to %d of %d, %d layers in fp8", part.start, part.stop - 1, num_blocks, len(in_fp8))
        return model.to(device, plan.dtype)

    # 4. the engine, which shards the optimizer over the data axis
    log.info("engine: pp %d (%s), zero %d", mesh.pp, plan.layout.pp_schedule, plan.layout.zero)
    if mesh.pp > 1:
        return PipeEngine(stage, num_blocks, optimizer, plan)
    return DataEngine(stage(range(num_blocks)), optimizer, plan)


@torch.no_grad()
def fill_weights(model: nn.Module, start: StartValue, *, tp_rank: int = 0, tp: int = 1) -> None:
    """Fill a model's parameters, or this rank's shards of them, from the whole start values."""
    for name, parameter in model.named_parameters():
        shard = shard_of(parameter, tp_rank, tp)
        parameter.copy_(shard.take(start(name, torch.Size(shard.whole_shape(parameter.shape)))))
