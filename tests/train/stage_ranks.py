"""A training run of several stages that tells what each of them leaves to the next; run by `testing.ranks`."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

from megavideo.config.load import load
from megavideo.config.schema.train import TrainRun
from megavideo.parallel.processes.distributed import Launch
from megavideo.parallel.processes.groups import destroy_groups
from megavideo.train import run
from megavideo.train.build import Parts, build_parts

# the number of process groups during and after a stage, and what of its engine is still alive
Left = dict[str, Any]


def left_after_each(launch: Launch, words: Sequence[str]) -> list[Left]:
    """Train; what was left of each stage once its memory was to be free, in turn."""
    engine: dict[str, weakref.ref[Any]] = {}
    told: list[Left] = []

    def build(*arguments: Any) -> Parts:
        parts = build_parts(*arguments)
        made = parts.engine
        _, weight = next(made.named_parameters())
        engine.update(ours=weakref.ref(made), deepspeed=weakref.ref(made.deepspeed))
        engine.update(optimizer=weakref.ref(made.base_optimizer), weight=weakref.ref(weight))
        return parts

    def destroy() -> None:
        during = _num_groups()
        destroy_groups()
        gc.collect()
        alive = {name: reference() is not None for name, reference in engine.items()}
        told.append({"num_groups_during": during, "num_groups_after": _num_groups(), "alive": alive})

    with (
        patch.object(run, "process_group", lambda *_: nullcontext(launch)),
        patch.object(run, "build_parts", build),
        patch.object(run, "destroy_groups", destroy),
    ):
        run.train(load(TrainRun, "train", list(words)))
    return told


def _num_groups() -> int:
    return len(dist.distributed_c10d._world.pg_map)
