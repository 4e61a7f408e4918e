"""Peak speed of a device, against which MFU is measured."""

from __future__ import annotations

import time

import torch

# dense bf16 TFLOP/s by a part of the device's name, of which the first counts (NVIDIA data sheets): boards with less
# power than SXM say so in their names
_BF16_TFLOPS = {
    "H200 NVL": 835.5, "H100 NVL": 835.5, "H100 PCIe": 756.5,
    "H200": 989.5, "H100": 989.5, "A100": 312.0, "B200": 2250.0,
}  # fmt: skip
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
        known = [tflops for part, tflops in _BF16_TFLOPS.items() if part in name]
        return known[0] * 1e12 if known else None
    a = torch.ones(_PROBE_SIZE, _PROBE_SIZE, dtype=dtype)
    best, first = float("inf"), time.perf_counter()
    for _ in range(_PROBE_RUNS):
        begin = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begin)
        if time.perf_counter() - first > _PROBE_SECONDS:
            break
    return float(2 * _PROBE_SIZE**3 / best)
