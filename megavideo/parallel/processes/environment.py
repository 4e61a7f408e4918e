"""Environment variables of a process that trains on a GPU, set before what reads them.

The CUDA driver reads its own when it makes a context; torch reads its allocator's at the first use of the allocator and
those of its NCCL watchdog when the process group is made (torch 2.11, `CUDAAllocatorConfig.h` and
`ProcessGroupNCCL.hpp`). `process_group` sets them ahead of all three.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from datetime import timedelta

_BLACKWELL = 10  # major compute capability
_OLDER_NAMES = {
    "PYTORCH_ALLOC_CONF": "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "NCCL_ASYNC_ERROR_HANDLING",
}
_NVML = "libnvidia-ml.so.1"


def gpu_environment(
    environment: Mapping[str, str], chip: int | None, layers_communicate: bool, timeout: timedelta
) -> dict[str, str]:
    """The variables to set beside those of `environment`, of which none is changed, under an older name neither.

    `chip` is the major compute capability (9: Hopper, 10: Blackwell), None where it is not known. `layers_communicate`
    tells whether any layer does so within a pass, under tensor or context parallel. `timeout` is that of a collective.

    - `CUDA_DEVICE_MAX_CONNECTIONS`, the number of hardware queues. Up to Hopper it is 1 where layers communicate: then
      kernels start in the order of their launches, so a gather or reduce-scatter that megatron-core launches ahead of a
      matrix product runs beside it and not after it. Blackwell no longer needs that, and gets 32, as each group has a
      stream of its own and streams share the 8 queues of the driver's default. Without tensor and context parallel it
      stays at the default: with one queue, gathers or reductions that follow each other (ZeRO-3, the end of a step)
      would hold up the kernels launched after them. It may be set there all the same; results are never touched.
    - `PYTORCH_ALLOC_CONF`: segments that grow. Packs differ in the number of segments and text rows, and the bucket of
      gradients comes and goes in each backward pass; both leave gaps between segments of fixed size.
    - `TORCH_NCCL_*`: torch ends a process whose collective takes longer than the time-out, without a call that may hang
      itself, and also where the thread that would do so hangs in CUDA.
    """
    wanted = {
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        "TORCH_NCCL_ENABLE_MONITORING": "1",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(min(480, int(timeout.total_seconds()))),
    }
    if layers_communicate and chip is not None:
        wanted["CUDA_DEVICE_MAX_CONNECTIONS"] = "1" if chip < _BLACKWELL else "32"
    return {
        name: value
        for name, value in wanted.items()
        if name not in environment and _OLDER_NAMES.get(name, name) not in environment
    }


def chip_generation(library: str = _NVML) -> int | None:
    """Major compute capability of this machine's first GPU, without a CUDA call; None where the library is missing.

    CUDA itself would be the wrong one to ask: its first call is what the variables must come before. `library` is
    NVIDIA's management library, which comes with the driver.
    """
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0:
        return None
    gpu, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    try:
        found = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(0), ctypes.byref(gpu)) == 0
        told = found and nvml.nvmlDeviceGetCudaComputeCapability(gpu, ctypes.byref(major), ctypes.byref(minor)) == 0
    finally:
        nvml.nvmlShutdown()
    return major.value if told else None
