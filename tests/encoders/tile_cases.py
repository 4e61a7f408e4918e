"""What tests of tiles share: likeness in decibels, and the bytes of tensors that are alive at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


def psnr(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Likeness in dB, the peak being the range of what is expected."""
    spread = expected.max() - expected.min()
    return float(10 * torch.log10(spread**2 / (found - expected).square().mean().clamp_min(1e-20)))


def noise(frames: int, height: int, width: int) -> torch.Tensor:
    """A video [1, 3, T, H, W] of noise in -1..1."""
    return torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made inside the block that are still alive, and their peak.

    Mapped files do not count, whose pages the kernel can take back, nor do views of `given`.
    """

    def __init__(self, given: torch.Tensor | None) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set() if given is None else {given.untyped_storage()._cdata}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in tree_iter(out):
            if isinstance(item, torch.Tensor) and item.untyped_storage().filename is None:
                self._count(item.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak_bytes(work: Callable[[], object], given: torch.Tensor | None = None) -> int:
    """Most bytes of tensors that are alive at a time while `work` runs on what it is given."""
    with LiveBytes(given) as live:
        work()
    return live.peak
