"""megatron-core as this project uses it: the import, its settings, and what it asks of a machine without GPU."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from typing import Any

import torch


@cache
def load_megatron() -> Any:
    """The modules `megatron.core.tensor_parallel` of an initialised megatron-core.

    It is imported late, since that takes seconds. Its layers are given their groups as values; of its global state
    they use one communication buffer, made here. This is the one place that touches `parallel_state`.
    """
    with warnings.catch_warnings():
        # it warns at import of every optional package that is missing
        warnings.simplefilter("ignore")
        from megatron.core import parallel_state, tensor_parallel

    # of CUDA_DEVICE_MAX_CONNECTIONS it would tell each process; that is settled before CUDA starts, by the chip
    tensor_parallel.layers.linear_with_grad_accumulation_and_async_allreduce.warned = True
    if not torch.cuda.is_available():
        # the one CUDA call on the path of its linear layers: where a buffer shall be
        torch.cuda.current_device = _cpu_device  # type: ignore[assignment]
    parallel_state._set_global_memory_buffer()
    logging.getLogger(__name__).debug("megatron-core loaded")
    return tensor_parallel


@cache
def megatron_config(dtype: torch.dtype, sequence_parallel: bool) -> Any:
    """`ModelParallelConfig` of layers whose weights are filled by us."""
    load_megatron()
    from megatron.core.model_parallel_config import ModelParallelConfig

    return ModelParallelConfig(
        # tells a layer whether it may share tokens out; the degree itself comes with its group
        tensor_model_parallel_size=2,
        sequence_parallel=sequence_parallel,
        use_cpu_initialization=True,
        perform_initialization=False,
        params_dtype=dtype,
    )


def _cpu_device() -> torch.device:
    return torch.device("cpu")
