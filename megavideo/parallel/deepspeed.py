"""DeepSpeed's import, kept from what a run does not need."""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

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
    with redirect_stdout(io.StringIO()):
        return load_deepspeed().initialize(**arguments)[0]


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
