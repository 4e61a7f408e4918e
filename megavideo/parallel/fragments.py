"""Which pieces of the optimizer's fp32 state this rank holds, named by the parameter they belong to.

A fragment is a run of a flattened parameter, or of the flattened part of it that a tensor-parallel rank holds. All
ranks' fragments together cover every parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from megavideo.parallel.engine import Engine

WEIGHT = "weight"
# where DeepSpeed keeps, on a parameter, what part of it this rank's partition holds
_PARTITION_LINK = "_hp_mapping"


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + numel) of the flattened `shard` of a parameter of whole `shape`.

    `states` are views into the live states, by state name.

    It has the fp32 weight under `weight` and the optimizer's own (`exp_avg`, `exp_avg_sq`, `ema`); each is a
    flat fp32 tensor of `numel` elements. `steps` is the optimizer's count of updates, shared by many fragments.
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


def owned_fragments(engine: Engine, *, dp_rank: int) -> Iterator[Fragment]:
    """Fragments that this rank must save: its ZeRO partition, or without ZeRO everything on the first replica."""
    if engine.zero > 0 or dp_rank == 0:
        yield from held_fragments(engine)


def held_fragments(engine: Engine) -> Iterator[Fragment]:
    """Fragments whose states live on this rank, and must be filled when a checkpoint is read."""
    optimizer = engine.base_optimizer
    flats = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if engine.zero == 0:
        for name, parameter in engine.module.named_parameters():
            yield _fragment(name, 0, parameter, optimizer.state[parameter], 0, parameter.numel())
        return
    for name, parameter in engine.module.named_parameters():
        mapping = getattr(parameter, _PARTITION_LINK)
        if mapping is None:
            continue
        flat = flats[mapping.param_group_index]
        begin, numel = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
        yield _fragment(name, mapping.lp_fragment_address.start, flat, optimizer.state[flat], begin, numel)


def _fragment(
    name: str, start: int, flat: torch.Tensor, state: dict[str, torch.Tensor], begin: int, numel: int
) -> Fragment:
    views = {key: value for key, value in state.items() if value.shape == flat.shape and key != "step"}
    states = {key: value.detach().view(-1).narrow(0, begin, numel) for key, value in {WEIGHT: flat, **views}.items()}
    return Fragment(name, start, states, state["step"])
