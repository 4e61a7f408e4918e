"""What the kernels of several libraries need of the lengths of segments, without asking the device.

Shape legend: N query tokens, K segments.
"""

from __future__ import annotations

import torch

from megavideo.model.attention.kernel import Lengths


def rounded_up(longest: int, least: int) -> int:
    """A power of two times `least` that is at least `longest`: few different bounds, where each is planned for."""
    bound = least
    while bound < longest:
        bound *= 2
    return bound


def without_keys(queries: Lengths, keys: Lengths, num_rows: int) -> torch.Tensor:
    """Which of the first `num_rows` query rows belong to a segment that has no keys: [num_rows] bool, on the device."""
    rows = torch.arange(num_rows, dtype=torch.int32, device=queries.cu_seqlens.device)
    segment = torch.searchsorted(queries.cu_seqlens[1:], rows, right=True)
    empty = torch.nn.functional.pad(keys.cu_seqlens.diff() == 0, (0, 1))  # rows past the last segment: no
    return empty[segment]
