"""DeepSpeed's import, kept from what a run does not need."""

from __future__ import annotations

import inspect
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

# its timer of throughput, which nothing here reads, waits for the device twice a micro-batch
NO_TIMERS = {"throughput": {"enabled": False}}
_NOISY_LOGGERS = ("DeepSpeed", "torch.utils.cpp_extension")


def load_deepspeed() -> Any:
    """DeepSpeed, imported late: it takes seconds and reads DS_ACCELERATOR."""
    # it warns of missing CUDA compilers and of optimizers it has not tested; ours is covered by our own tests
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    import deepspeed
    from deepspeed.ops.op_builder.builder import OpBuilder

    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    # its shared-memory all-reduce serves inference only, and would be compiled with C++ at the start of every CPU run
    shm = deepspeed.accelerator.get_accelerator().create_op_builder("ShareMemCommBuilder")
    if isinstance(shm, OpBuilder):
        deepspeed.ops.__compatible_ops__[shm.NAME] = False
    return deepspeed


def initialize(**arguments: Any) -> Any:
    """DeepSpeed's engine of a model, made without its account of memory on standard output."""
    deepspeed = load_deepspeed()
    with redirect_stdout(io.StringIO()), _one_zero_optimizer(deepspeed.runtime.engine):
        return deepspeed.initialize(**arguments)[0]


@contextmanager
def _one_zero_optimizer(engine: Any) -> Iterator[None]:
    """Engines made here take one optimizer for every ZeRO stage below 3.

    For bf16 with ZeRO-1 DeepSpeed has another, which all-reduces gradients whatever it is told: 6 bytes a parameter and
    step. The common one, which it takes itself for that case with offload, sends each piece to its owner: 4 bytes.
    """
    chosen = engine.DeepSpeedEngine._do_optimizer_sanity_check

    def choose(self: Any, optimizer: Any) -> Any:
        kind = chosen(self, optimizer)
        return engine.ZERO_OPTIMIZATION if kind == engine.BFLOAT16 and self.zero_optimization() else kind

    engine.DeepSpeedEngine._do_optimizer_sanity_check = choose
    try:
        yield
    finally:
        engine.DeepSpeedEngine._do_optimizer_sanity_check = chosen


@dataclass(frozen=True)
class Pipeline:
    """Of DeepSpeed's pipeline what is used here: a layer's specification, the two kinds of module, the topology."""

    layer_spec: Any
    one_f_one_b: Any
    dualpipev: Any
    topology: Any


def load_pipeline() -> Pipeline:
    """DeepSpeed's pipeline, imported late."""
    load_deepspeed()
    from deepspeed.pipe import LayerSpec, PipelineModule
    from deepspeed.runtime.pipe.dualpipev import DualPipeVModule
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    return Pipeline(LayerSpec, PipelineModule, DualPipeVModule, PipeModelDataParallelTopology)


def take_apart(engine: Any) -> None:
    """End the use of an engine: from then on DeepSpeed holds neither it nor its groups.

    Its hooks on gradients would keep its weights and states for good, since they are held by autograd, into which the
    garbage collector does not see.
    """
    from deepspeed.runtime.pipe import p2p
    from deepspeed.utils import groups

    engine.destroy()
    _forget_zero3_models()
    p2p._groups, p2p._grid = None, None
    # it would take them for the next engine, which may be of another layout
    groups.mpu, groups._WORLD_GROUP = None, None


def _forget_zero3_models() -> None:
    """Two places in which DeepSpeed 0.19 keeps every model that was ever under ZeRO-3: a list, and a method's cache."""
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    wrapper = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    inspect.getclosurevars(wrapper).nonlocals["func"].cache_clear()
