"""What the engine of a rank holds, counted by the storages of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

from megavideo.config.layout import parse_layout
from megavideo.parallel.engines.engine import Engine
from megavideo.parallel.processes.distributed import Launch
from megavideo.parity.spec import ParitySpec
from megavideo.planning.states import state_bytes
from megavideo.testing.parity_training import parity_training

Counts = dict[str, int]


def held_and_planned(
    launch: Launch, cases: Sequence[tuple[str, dict[str, Any]]], spec: ParitySpec
) -> list[tuple[Counts, Counts]]:
    """For each layout, with changes of the spec: what this rank holds in and after a step, and what is planned."""
    return [_case(launch, layout, replace(spec, **changes)) for layout, changes in cases]


def _case(launch: Launch, text: str, spec: ParitySpec) -> tuple[Counts, Counts]:
    with parity_training(launch, spec, text) as training:
        mesh = training.engine.plan.mesh
        accumulators = _Accumulators(training.engine)
        with accumulators:
            training.step(0)
        held = _states(training.engine) | {"accumulators": accumulators.num_bytes}
        layout = replace(parse_layout(text), dp=mesh.dp)
        planned = state_bytes(spec.as_training(text), layout, mesh.pp_rank, training.engine.plan.groups.data.rank())
        return held, {name: getattr(planned, name) for name in held}


def _storages(tensors: Iterable[torch.Tensor]) -> int:
    found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if t.numel()}
    return sum(found.values())


def _states(engine: Engine) -> Counts:
    optimizer = engine.base_optimizer
    flats = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if engine.zero == 3:  # between updates its groups are empty
        flats = engine.deepspeed.optimizer.fp32_partitioned_groups_flat
    own: dict[str, list[torch.Tensor]] = {"ema": [], "optimizer": []}
    for flat in flats:
        for name, value in optimizer.state[flat].items():
            if value.numel() > 1:  # all but the count of updates
                own["ema" if name == "ema" else "optimizer"].append(value)
    parameters = [parameter for _, parameter in engine.named_parameters()]
    weights = [p.data for p in parameters] + [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]  # type: ignore[attr-defined]
    return {
        "weights": _storages(weights),
        "master": 0 if engine.zero == 0 else _storages(flats),
        **{name: _storages(values) for name, values in own.items()},
    }


class _Accumulators:
    """Within it, the most that gradients take between a step's micro-batches and its reduction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.num_bytes = 0
        if engine.zero == 0:
            engine.base_optimizer.register_step_pre_hook(lambda *_: self._count(self._whole()))

    def __enter__(self) -> None:
        self._patches = []
        optimizer = self._engine.deepspeed.optimizer
        if self._engine.zero == 1:
            reduce = optimizer.reduce_gradients
            self._patches.append(patch.object(optimizer, "reduce_gradients", self._before(reduce, self._whole)))
        elif self._engine.zero in (2, 3):
            held = self._part if self._engine.zero == 2 else lambda: [optimizer.grad_partitions_flat_buffer]
            step = self._engine.deepspeed.step
            self._patches.append(patch.object(self._engine.deepspeed, "step", self._before(step, held)))
        for each in self._patches:
            each.start()

    def __exit__(self, *_: object) -> None:
        for each in self._patches:
            each.stop()

    def _before(self, function: Any, held: Any) -> Any:
        def work(*arguments: Any, **options: Any) -> Any:
            self._count(held())
            return function(*arguments, **options)

        return work

    def _count(self, tensors: Iterable[torch.Tensor]) -> None:
        self.num_bytes = max(self.num_bytes, sum(tensor.nbytes for tensor in tensors))

    def _whole(self) -> list[torch.Tensor]:
        parameters = [parameter for _, parameter in self._engine.named_parameters()]
        found = [getattr(p, "grad_accum", None) if hasattr(p, "grad_accum") else p.grad for p in parameters]
        accumulated = [p.grad if value is None else value for p, value in zip(parameters, found, strict=True)]
        return [tensor for tensor in accumulated if tensor is not None]

    def _part(self) -> list[torch.Tensor]:
        optimizer = self._engine.deepspeed.optimizer
        whole = [t for tensors in optimizer.all_grad_tensors.values() if tensors is not None for t in tensors]
        flats = [g.flat_partition for g in optimizer.averaged_gradients.values() if hasattr(g, "flat_partition")]
        return whole + flats
