"""Which pieces of the optimizer's fp32 state this rank holds, named by the parameter they belong to.

A fragment is a run of a flattened parameter, or of the flattened part of it that a tensor-parallel rank holds. All
ranks' fragments together cover every parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from megavideo.parallel.engines.engine import Engine
from megavideo.parallel.layers.sharding import Shard

WEIGHT = "weight"
# where DeepSpeed keeps, on a parameter, what part of it this rank's partition holds
_PARTITION_LINK = "_hp_mapping"


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + numel) of the flattened `shard` of a parameter of whole `shape`.

    `states` are views into the live states, by name: the fp32 weight under `weight` and the optimizer's own
    (`exp_avg`, `exp_avg_sq`, `ema`), each a flat fp32 tensor of `numel` elements. `steps` is the optimizer's count of
    updates, shared by many fragments.
    """

    name: str
    shape: tuple[int, ...]
    shard: Shard
    start: int
    states: dict[str, torch.Tensor]
    steps: torch.Tensor

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.states[WEIGHT].numel()


@dataclass(frozen=True)
class Place:
    """Where a fragment lies: `numel` elements from `begin` of `flat`, a tensor that the optimizer updates."""

    name: str
    shape: tuple[int, ...]
    shard: Shard
    start: int
    flat: torch.Tensor
    begin: int
    numel: int

    def view(self, flat: torch.Tensor) -> torch.Tensor:
        """The fragment's elements of a tensor that is laid out like `flat`."""
        return flat.detach().view(-1).narrow(0, self.begin, self.numel)


def held_places(engine: Engine) -> Iterator[Place]:
    """Places of the fragments whose states live on this rank."""
    flats = [parameter for group in engine.base_optimizer.param_groups for parameter in group["params"]]
    data_rank = engine.plan.groups.data.rank()
    for name, parameter, shard in engine.trained_parameters():
        if engine.zero == 3:
            yield from _zero3_place(name, parameter, shard, engine.deepspeed.optimizer, data_rank)
        elif engine.zero == 0:
            yield Place(name, shard.whole_shape(parameter.shape), shard, 0, parameter, 0, parameter.numel())
        elif (mapping := getattr(parameter, _PARTITION_LINK)) is not None:
            start, address = mapping.lp_fragment_address.start, mapping.hp_fragment_address
            flat = flats[mapping.param_group_index]
            yield Place(name, shard.whole_shape(parameter.shape), shard, start, flat, address.start, address.numel)


def _zero3_place(name: str, parameter: Any, shard: Shard, optimizer: Any, data_rank: int) -> Iterator[Place]:
    """The rank's equal part of a parameter, which may lie past its end."""
    group, begin, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = data_rank * parameter.partition_numel()
    numel = min(parameter.partition_numel(), parameter.ds_numel - start)
    if numel > 0:
        shape = shard.whole_shape(parameter.ds_shape)
        yield Place(name, shape, shard, start, optimizer.fp32_partitioned_groups_flat[group], begin, numel)


def owned_fragments(engine: Engine) -> Iterator[Fragment]:
    """Fragments that this rank must save: each element of the model is saved by one rank."""
    mesh = engine.plan.mesh
    for fragment in held_fragments(engine):
        is_first_replica = engine.zero > 0 or engine.plan.groups.data.rank() == 0
        if is_first_replica and (fragment.shard.count > 1 or mesh.tp_rank == 0):
            yield fragment


def held_fragments(engine: Engine) -> Iterator[Fragment]:
    """Fragments whose states live on this rank, and must be filled when a checkpoint is read."""
    for place in held_places(engine):
        state = engine.base_optimizer.state[place.flat]
        views = {key: value for key, value in state.items() if value.shape == place.flat.shape and key != "step"}
        states = {key: place.view(value) for key, value in {WEIGHT: place.flat, **views}.items()}
        yield Fragment(place.name, place.shape, place.shard, place.start, states, state["step"])
