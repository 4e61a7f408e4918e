"""A stand-in for a GPU's copies on a CPU, and worse than one: copies are late, and what must not be touched is watched.

Until a copy is made its targets hold bytes of ones, which is not a number in any floating point format, and -1. It is
made when somebody waits for it, or by a thread some time after it was begun, and fails with `CopyFault` where a source
was written to or freed, or a target written to. So code that leaves out a wait computes with poison or is told where it
went wrong: on every run and not by chance.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence

import torch
import xxhash

from megavideo.device.copies import Pair

_POISON = 0xFF


class CopyFault(RuntimeError):
    """Something was used before a copy was done, or changed while it was under way."""


class LateCopies:
    """Copies in host memory as late as the protocol allows; see `DeviceCopies`.

    With `delay_seconds` None a copy is made when somebody waits for it, else that long after it was begun.
    """

    pinned: bool = True

    def __init__(self, delay_seconds: float | None = None) -> None:
        self._delay_seconds = delay_seconds
        self._leaving: weakref.WeakSet[_OnHost] = weakref.WeakSet()
        self._staged: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Poisoned memory."""
        made = torch.empty(tuple(shape), dtype=dtype)
        _poison(made)
        return made

    def staged(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """In memory of its own."""
        if self._staged.get(id(tensor)) is tensor and tensor.dtype == dtype:
            return tensor
        made = self.buffer(tensor.shape, dtype).copy_(tensor)
        self._staged[id(made)] = made
        return made

    def final(self, sources: Sequence[torch.Tensor]) -> _Final:
        """The values as they are now; they are compared when they are copied."""
        return _Final(self, sources)

    def to_device(self, tensors: Sequence[torch.Tensor]) -> _OnDevice:
        """Raises CopyFault where `tensors` wait for a copy to the host."""
        for copy in list(self._leaving):
            if not copy.ready() and any(_overlap(t, place) for t in tensors for place in copy.places):
                raise CopyFault("copied to the device before the copy to the host was waited for")
        return _OnDevice(self, tensors, None)

    def _begin(self, work: Callable[[], None]) -> _Job:
        return _Job(work, self._delay_seconds)


class _Job:
    """Work that is done once: when it is waited for, or after a delay."""

    def __init__(self, work: Callable[[], None], delay_seconds: float | None) -> None:
        self._work: Callable[[], None] | None = work
        self._fault: CopyFault | None = None
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        if delay_seconds is not None:
            self._timer = threading.Timer(delay_seconds, self._run)
            self._timer.daemon = True
            self._timer.start()

    @property
    def done(self) -> bool:
        return self._work is None

    def wait(self) -> None:
        if self._timer is not None:
            self._timer.join()
        else:
            self._run()
        if self._fault is not None:
            raise self._fault

    def _run(self) -> None:
        with self._lock:
            if self._work is not None:
                try:
                    self._work()
                except CopyFault as fault:
                    self._fault = fault
                self._work = None


class _Watched:
    """A tensor that must stay as it is."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self._storage = tensor.untyped_storage()
        self._place = (self._storage.data_ptr(), self._storage.nbytes())
        self._digest = _digest(tensor)

    def check(self, what: str) -> None:
        """Raise CopyFault where it did not."""
        name = f"{what} {tuple(self.tensor.shape)} of {self.tensor.dtype}"
        if (self._storage.data_ptr(), self._storage.nbytes()) != self._place:
            raise CopyFault(f"{name}: freed before it was copied")
        if _digest(self.tensor) != self._digest:
            raise CopyFault(f"{name}: changed before it was copied")


class _Final:
    def __init__(self, copies: LateCopies, sources: Sequence[torch.Tensor]) -> None:
        self._copies = copies
        self._watched = {_span(source): _Watched(source.detach()) for source in sources}

    def to_host(self, pairs: Sequence[Pair]) -> _OnHost:
        """Raises CopyFault for a source that was not said to be final."""
        unknown = [source for _, source in pairs if _span(source) not in self._watched]
        if unknown:
            raise CopyFault(f"source {tuple(unknown[0].shape)} was not said to be final")
        return _OnHost(self._copies, [(place, self._watched[_span(source)]) for place, source in pairs])


class _OnHost:
    def __init__(self, copies: LateCopies, pairs: Sequence[tuple[torch.Tensor, _Watched]]) -> None:
        self.places = tuple(place for place, _ in pairs)
        self._copies = copies
        for place in self.places:
            _poison(place)
        poisoned = [_Watched(place) for place in self.places]
        self._job = copies._begin(lambda: _copy(poisoned, [source for _, source in pairs]))
        copies._leaving.add(self)

    def ready(self) -> bool:
        return self._job.done

    def wait(self) -> None:
        self._job.wait()

    def back(self) -> _OnDevice:
        return _OnDevice(self._copies, self.places, self)


class _OnDevice:
    def __init__(self, copies: LateCopies, tensors: Sequence[torch.Tensor], after: _OnHost | None) -> None:
        self._made = tuple(copies.buffer(tensor.shape, tensor.dtype) for tensor in tensors)
        poisoned = [_Watched(made) for made in self._made]
        watched = None if after is not None else [_Watched(tensor) for tensor in tensors]

        def work() -> None:
            if after is not None:
                after.wait()
            _copy(poisoned, watched or [_Watched(tensor) for tensor in tensors])

        self._job = copies._begin(work)

    def ready(self) -> bool:
        return self._job.done

    def get(self) -> tuple[torch.Tensor, ...]:
        self._job.wait()
        return self._made


def _copy(targets: Sequence[_Watched], sources: Sequence[_Watched]) -> None:
    for target, source in zip(targets, sources, strict=True):
        source.check("source")
        target.check("target")
        target.tensor.copy_(source.tensor)


def _poison(tensor: torch.Tensor) -> None:
    tensor.view(-1).view(torch.uint8).fill_(_POISON)


def _digest(tensor: torch.Tensor) -> int:
    flat = tensor.detach().contiguous()
    # not through numpy, after which the storage could not be freed early by whoever does that
    return xxhash.xxh64_intdigest((ctypes.c_char * flat.nbytes).from_address(flat.data_ptr()) if flat.nbytes else b"")


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.nbytes


def _overlap(one: torch.Tensor, two: torch.Tensor) -> bool:
    (begin, size), (other, other_size) = _span(one), _span(two)
    return begin < other + other_size and other < begin + size
