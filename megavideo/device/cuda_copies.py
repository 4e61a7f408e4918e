"""Copies of a GPU, on streams of their own beside the one that computes.

Which order is asked for, and where:

- *Source, then copy to the host.* `final` records an event on the producer's stream, for which the copies wait.
- *Copy to the host, then the host.* `ToHost.wait` waits for an event after the copies.
- *Copy to the host, then other use of its source's memory.* The caching allocator gives memory that is let go to what
  is queued next on the producer's stream, and knows nothing of the copies. So sources are held until their copies are
  done, or until more than `_MOST_UNDER_WAY` are under way and the producer's stream has been made to wait for the
  oldest: the host runs ahead of the device, and would else hold the sources of a whole forward pass.
- *Last use of memory, then copy to the device.* Targets are memory of the consumer's stream, which kernels queued
  before may still use, so the copies wait for an event recorded there. (Memory of the copying stream, with
  `record_stream`, would come back only once the host sees an event pass, and pile up as the host runs ahead.)
- *Copy to the device, then its consumer.* `get` has the current stream wait for an event after the copies. What nobody
  has got is held until its copy is done, for the same reason as sources.

Host memory is torch's pinned memory. Its allocator notes the stream of each copy, and memory that is let go comes back
once that stream is done with it.

Calls may come from any thread: each makes the device current, and goes back without making a context on another one.
`torch.cuda.stream` alone would not: a thread begins on device 0, and going back to a stream of that device would make a
context there, for each process of a node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

from megavideo.device.copies import Pair

_MOST_UNDER_WAY = 2

Tensors = tuple[torch.Tensor, ...]


class CudaCopies:
    """Copies of one GPU; see `DeviceCopies`. Each direction has a stream."""

    pinned: bool = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._outward = torch.cuda.Stream(device)
        self._inward = torch.cuda.Stream(device)
        self._leaving: deque[_OnHost] = deque()
        self._coming: dict[_OnDevice, None] = {}  # in their order

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Pinned memory."""
        with torch.cuda.device(self._device):
            return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def staged(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """In pinned memory; cast on the host."""
        if tensor.dtype == dtype and tensor.is_pinned():
            return tensor
        return self.buffer(tensor.shape, dtype).copy_(tensor)

    def final(self, sources: Sequence[torch.Tensor]) -> _Final:
        """An event of the current stream."""
        del sources
        with torch.cuda.device(self._device):
            return _Final(self, torch.cuda.current_stream(self._device))

    def to_device(self, tensors: Sequence[torch.Tensor]) -> _OnDevice:
        """Into memory of the current stream."""
        return self._to_device(tensors, None)

    def _to_host(self, pairs: Sequence[Pair], producer: torch.cuda.Stream, final: torch.cuda.Event) -> _OnHost:
        with torch.cuda.device(self._device):
            self._let_go(_MOST_UNDER_WAY - 1)
            self._outward.wait_event(final)
            with torch.cuda.stream(self._outward):
                for place, source in pairs:
                    place.copy_(source.detach(), non_blocking=True)
            copy = _OnHost(self, pairs, producer, self._outward)
            self._leaving.append(copy)
            return copy

    def _to_device(self, tensors: Sequence[torch.Tensor], after: torch.cuda.Event | None) -> _OnDevice:
        with torch.cuda.device(self._device):
            self._let_go(_MOST_UNDER_WAY)
            consumer = torch.cuda.current_stream(self._device)
            made = tuple(torch.empty(t.shape, dtype=t.dtype, device=self._device) for t in tensors)
            self._inward.wait_event(_recorded(consumer))
            if after is not None:
                self._inward.wait_event(after)
            with torch.cuda.stream(self._inward):
                for target, tensor in zip(made, tensors, strict=True):
                    target.copy_(tensor, non_blocking=True)
            copy = _OnDevice(self, made, consumer, self._inward)
            self._coming[copy] = None
            return copy

    def _let_go(self, most: int) -> None:
        """Hold no longer what copies are done with, nor the sources of more than `most` copies to the host."""
        while self._leaving and (self._leaving[0].ready() or len(self._leaving) > most):
            self._leaving.popleft().let_go()
        while self._coming and next(iter(self._coming)).ready():
            self._coming.pop(next(iter(self._coming)))


def _recorded(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """An event after what is queued on a stream. Threads that wait for it sleep."""
    event = torch.cuda.Event(blocking=True)
    event.record(stream)
    return event


class _Final:
    def __init__(self, copies: CudaCopies, producer: torch.cuda.Stream) -> None:
        self._copies = copies
        self._producer = producer
        self._event = _recorded(producer)

    def to_host(self, pairs: Sequence[Pair]) -> _OnHost:
        return self._copies._to_host(pairs, self._producer, self._event)


class _OnHost:
    def __init__(
        self, copies: CudaCopies, pairs: Sequence[Pair], producer: torch.cuda.Stream, copying: torch.cuda.Stream
    ) -> None:
        self._copies = copies
        self._producer = producer
        self._places = tuple(place for place, _ in pairs)
        self._sources = tuple(source for _, source in pairs)
        self._done = _recorded(copying)

    def ready(self) -> bool:
        return self._done.query()

    def wait(self) -> None:
        self._done.synchronize()
        self._sources = ()

    def back(self) -> _OnDevice:
        return self._copies._to_device(self._places, self._done)

    def let_go(self) -> None:
        """Let the sources' memory be used again, by what their producer queues from now on."""
        if self._sources:
            self._producer.wait_event(self._done)
            self._sources = ()


class _OnDevice:
    def __init__(
        self, copies: CudaCopies, tensors: Tensors, owner: torch.cuda.Stream, copying: torch.cuda.Stream
    ) -> None:
        self._copies = copies
        self._tensors = tensors
        self._owner = owner  # the stream whose memory they are in
        self._done = _recorded(copying)

    def ready(self) -> bool:
        return self._done.query()

    def get(self) -> Tensors:
        current = torch.cuda.current_stream(self._copies._device)
        current.wait_event(self._done)
        if current != self._owner:
            for tensor in self._tensors:
                tensor.record_stream(current)
        self._copies._coming.pop(self, None)
        return self._tensors
