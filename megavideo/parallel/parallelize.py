"""A model under a layout, in one visible order: layers, stages, weights, engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from megavideo.config.schema.precision import LayersConfig
from megavideo.device.choice import copies_for
from megavideo.model.attention.operator import Attention
from megavideo.model.dit import DiT
from megavideo.model.layers import Layers, LocalLayers
from megavideo.parallel.attention.candidates import Need
from megavideo.parallel.attention.choose import choose_attention
from megavideo.parallel.engines.engine import BaseOptimizer, DataEngine, Engine, EnginePlan
from megavideo.parallel.engines.pipeline import PipeEngine
from megavideo.parallel.engines.zero3 import Zero3Partition
from megavideo.parallel.layers.te_layers import build_layers, keep_excluded_in_bf16
from megavideo.parallel.materialise import Settle, StartValue, materialise


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
    attention = _attention(plan.layers, Need(plan.head_dim, plan.dtype), device)
    layers = make_layers(plan, attention, device)

    # 2. and 3. the blocks that this process holds, with its shards of the same weights under every layout
    settle = Zero3Partition(plan) if plan.layout.zero == 3 else None
    stage = partial(build_stage, build, layers, start=start, plan=plan, device=device, settle=settle)

    # 4. the engine, which shards the optimizer over the data axis
    log.info("engine: pp %d (%s), zero %d", mesh.pp, plan.layout.pp_schedule, plan.layout.zero)
    engine = (
        PipeEngine(stage, num_blocks, optimizer, plan)
        if mesh.pp > 1
        else DataEngine(stage(range(num_blocks)), optimizer, plan)
    )

    # 5. an optimizer of whole matrices must know which rank holds what of them
    engine.base_optimizer.attach(engine)
    return engine


def _attention(config: LayersConfig, need: Need, device: torch.device) -> Attention:
    return choose_attention(config.attention, need, device)


def make_layers(plan: EnginePlan, attention: Attention, device: torch.device) -> Layers:
    """The layers that a layout needs. Raises ConfigError where this machine cannot run those that are asked for."""
    mesh, copies = plan.mesh, copies_for(device)
    if mesh.tp * mesh.cp == 1 and plan.layers.engine == "local":
        return LocalLayers(attention, copies=copies)
    log = logging.getLogger(__name__)
    log.info("layers: tp %d, sp %s, ulysses %d, ring %d", mesh.tp, mesh.sp, mesh.ulysses, mesh.ring)
    return build_layers(plan.layers, mesh, plan.groups, attention, device, copies=copies)


def build_stage(
    build: Callable[[Layers, range], DiT],
    layers: Layers,
    part: range,
    *,
    start: StartValue,
    plan: EnginePlan,
    device: torch.device,
    settle: Settle | None = None,
) -> DiT:
    """The blocks of `part` on `device`, in the run's precision and with this process's shards of the start values."""
    # built without memory: on the host a rank never holds more than one parameter
    with torch.device("meta"):
        model = build(layers, part)
    in_fp8 = keep_excluded_in_bf16(model, plan.layers)
    materialise(model, start, device, plan.dtype, tp_rank=plan.mesh.tp_rank, tp=plan.mesh.tp, settle=settle)
    logging.getLogger(__name__).info("blocks %d to %d, %d layers in fp8", part.start, part.stop - 1, len(in_fp8))
    return model
