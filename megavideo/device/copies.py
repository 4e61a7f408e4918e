"""Copies between a device and host memory that run beside the device's other work: one protocol for every device.

A GPU does what is queued on one of its streams in order, some time after the host has queued it, and what is queued on
another stream whenever that comes to it. Every order between the two has to be asked for, and is, in three places: a
copy to the host begins once what it reads is final (`DeviceCopies.final`); the host reads its target after
`ToHost.wait`; and what is queued after `ToDevice.get` runs after the copy to the device. The host waits in
`ToHost.wait` alone.

The rules for users, which `LateCopies` checks: from `final` until the copy is done nothing writes to a source, and
nothing but the copy touches its target. Sources need not be kept: the copies hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

# (target on the host, source on the device), of one shape and dtype; the target is contiguous
Pair = tuple[torch.Tensor, torch.Tensor]


class ToDevice(Protocol):
    """Copies to the device under way."""

    def ready(self) -> bool:
        """Whether they are done."""
        ...

    def get(self) -> tuple[torch.Tensor, ...]:
        """The tensors on the device, for what the calling thread queues from now on; the host does not wait."""
        ...


class ToHost(Protocol):
    """Copies to the host under way."""

    def ready(self) -> bool:
        """Whether they are done."""
        ...

    def wait(self) -> None:
        """Return once they are done; for them alone, not for other work of the device."""
        ...

    def back(self) -> ToDevice:
        """Begin to copy the targets to the device, after these copies; the host does not wait."""
        ...


class Final(Protocol):
    """Tensors of the device whose values are final: what is queued later leaves them as they are."""

    def to_host(self, pairs: Sequence[Pair]) -> ToHost:
        """Begin to copy them to the host; may be called in another thread than `DeviceCopies.final`."""
        ...


class DeviceCopies(Protocol):
    """Copies of one device. An instance belongs to one user, since its copies of one direction are done in order."""

    pinned: bool
    """Whether `buffer` gives page-locked memory, which cannot be swapped out and is rounded up to a power of two."""

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Host memory that copies reach without a detour; its values have no meaning yet."""
        ...

    def staged(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A host tensor in `dtype`, in memory that copies reach without a detour: itself if it lies there already."""
        ...

    def final(self, sources: Sequence[torch.Tensor]) -> Final:
        """Say that the values of `sources` are final once what the calling thread has queued so far is done."""
        ...

    def to_device(self, tensors: Sequence[torch.Tensor]) -> ToDevice:
        """Begin to copy host tensors to the device; they must stay as they are until that is done.

        The results may share memory with `tensors` where the device is the host.
        """
        ...
