"""What one rank tells in `test_materialise.py` of the parameters that a layout begins with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from megavideo.config.layout import parse_layout
from megavideo.model.dit import DiT
from megavideo.model.layers import Layers
from megavideo.optim.build import build_optimizer
from megavideo.parallel.engines.engine import EnginePlan
from megavideo.parallel.engines.fragments import WEIGHT, held_fragments
from megavideo.parallel.parallelize import parallelize
from megavideo.parallel.processes.distributed import Launch
from megavideo.parallel.processes.groups import Groups, destroy_groups
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.parity.packs import start_value
from megavideo.parity.spec import ParitySpec
from megavideo.train.step import squared_error


class Watch:
    """Start values and the model, both watched: how much of the model has memory whenever a value is asked for."""

    def __init__(self, spec: ParitySpec) -> None:
        self._spec = spec
        self._models: list[nn.Module] = []
        self.elements: list[int] = []
        self.built_on: set[str] = set()

    def build(self, layers: Layers, part: range) -> DiT:
        model = DiT(self._spec.model, layers, part=part)
        self._models.append(model)
        self.built_on |= {parameter.device.type for parameter in model.parameters()}
        return model

    def start(self, name: str, shape: torch.Size) -> torch.Tensor:
        parameters = [parameter for model in self._models for parameter in model.parameters()]
        shares = [getattr(parameter, "ds_tensor", parameter) for parameter in parameters]
        held = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() // tensor.element_size()
            for tensor in (*parameters, *shares)
            if not tensor.is_meta and tensor.numel()
        }
        self.elements.append(sum(held.values()))
        return start_value(self._spec, name, shape)


def run_layouts(launch: Launch, spec: ParitySpec, layouts: Sequence[str]) -> dict[str, Any]:
    """An account of each layout."""
    return {layout: _account(launch, spec, layout) for layout in layouts}


def _account(launch: Launch, spec: ParitySpec, text: str) -> dict[str, Any]:
    layout, watch = parse_layout(text), Watch(spec)
    mesh = ProcessMesh.of(layout, spec.heads, launch.rank, launch.world_size)
    dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
    plan = EnginePlan(layout, mesh, Groups.of(mesh, launch.device), dtype, 4, None, squared_error, spec.model.head_dim)
    optimizer = partial(build_optimizer, config=spec.optim)
    engine = parallelize(watch.build, spec.num_layers, watch.start, optimizer, plan, launch.device)
    engine.create_state()
    wrong, total = [], 0
    for fragment in held_fragments(engine):
        part = fragment.shard.take(start_value(spec, fragment.name, torch.Size(fragment.shape))).to(dtype).float()
        total += fragment.numel
        if not torch.equal(fragment.states[WEIGHT], part.flatten()[fragment.start :][: fragment.numel]):
            wrong.append(fragment.name)
    parameters = [parameter for _, parameter in engine.named_parameters()]
    account = {
        "wrong": wrong,
        "fragments": total,
        "dtypes": sorted({str(parameter.dtype) for parameter in parameters}),
        "elements": sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters),
        "most_held": max(watch.elements),
        "built_on": sorted(watch.built_on),
    }
    engine.close()
    destroy_groups()
    return account
