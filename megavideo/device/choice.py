"""Which copies a device has: the one place where its type decides."""

from __future__ import annotations

import torch

from megavideo.device.copies import DeviceCopies
from megavideo.device.cpu_copies import CpuCopies
from megavideo.device.cuda_copies import CudaCopies


def copies_for(device: torch.device) -> DeviceCopies:
    """Copies of `device` for one user, on streams of their own where it has streams."""
    return CudaCopies(device) if device.type == "cuda" else CpuCopies()
