"""Inputs of what is computed again, in host memory between the forward and the backward pass."""

from __future__ import annotations

import weakref

import torch
from torch.autograd.graph import saved_tensors_hooks

from megavideo.device.copies import DeviceCopies, ToDevice


class Offload:
    """Keeps tensors of a model's graph on the host, by copies that run beside its forward and backward passes.

    The backward pass asks for what was kept last first. So the first tensor that it asks for is waited for, and with
    each the one that was kept before it is fetched ahead: the device holds one more than the pass is at, besides those
    few whose copies to the host are under way.
    """

    def __init__(self, copies: DeviceCopies) -> None:
        self._copies = copies
        self._last: weakref.ref[_Kept] | None = None

    def context(self) -> saved_tensors_hooks:
        """Tensors that the graph saves inside this context wait on the host; nobody may write to them any more."""
        return saved_tensors_hooks(self._keep, _given_back)

    def _keep(self, tensor: torch.Tensor) -> _Kept | torch.Tensor:
        tensor = tensor.detach()
        if tensor.numel() == 0:  # torch's checkpoint saves one besides
            return tensor
        kept = _Kept(self._copies, tensor, self._last)
        self._last = weakref.ref(kept)
        return kept


def _given_back(kept: _Kept | torch.Tensor) -> torch.Tensor:
    return kept if isinstance(kept, torch.Tensor) else kept.give_back()


class _Kept:
    """A tensor on the host; `before` is the one that was kept before it."""

    def __init__(self, copies: DeviceCopies, tensor: torch.Tensor, before: weakref.ref[_Kept] | None) -> None:
        # referred to weakly: else each would keep all those before it, of earlier steps too
        self._before = before
        self._coming: ToDevice | None = None
        self._is_used = False
        self._on_host = copies.final([tensor]).to_host([(copies.buffer(tensor.shape, tensor.dtype), tensor)])

    def fetch(self) -> None:
        """Begin the way back, once; not again for what has been used."""
        if self._coming is None and not self._is_used:
            self._coming = self._on_host.back()

    def give_back(self) -> torch.Tensor:
        """The tensor on the device."""
        coming = self._on_host.back() if self._coming is None else self._coming
        # a graph that is kept asks again, and the tensor does not stay for that
        self._coming, self._is_used = None, True
        before = None if self._before is None else self._before()
        if before is not None:
            before.fetch()
        return coming.get()[0]
