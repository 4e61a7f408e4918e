"""Peak speed of a device, against which MFU is measured."""

from __future__ import annotations

import time

import torch

from megavideo.planning.chips import board_tflops

_PROBE_SIZE = 768
_PROBE_RUNS = 30
_PROBE_SECONDS = 1.0  # a CPU without instructions for bf16 takes a second for one product


def peak_flops_per_second(device: torch.device, dtype: torch.dtype, configured_tflops: float | None) -> float | None:
    """FLOP/s of one device: as configured, by the GPU's name, or on a CPU the best of a few matrix products.

    None for a GPU that is not known.
    """
    if configured_tflops is not None:
        return configured_tflops * 1e12
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = board_tflops(name)
        return None if known is None else known * 1e12
    a = torch.ones(_PROBE_SIZE, _PROBE_SIZE, dtype=dtype)
    best, first = float("inf"), time.perf_counter()
    for _ in range(_PROBE_RUNS):
        begin = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begin)
        if time.perf_counter() - first > _PROBE_SECONDS:
            break
    return float(2 * _PROBE_SIZE**3 / best)
