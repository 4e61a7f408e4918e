"""CUDA's streams, events and memory played on a CPU, in any order that they allow.

What is put on a stream waits in a queue, and queues move at random: when something is put on one, when the host waits,
and at the end. Memory that is let go is overwritten by what comes next on the stream that it belongs to, and new memory
by what came before, as the caching allocator of a GPU has it. So code that lacks an order computes with poison for some
seed, while its calls all succeed.
"""

from __future__ import annotations

import ctypes
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

DEVICE = torch.device("cuda", 1)
COMPUTE, OUTWARD, INWARD = "compute", "outward", "inward"
_NAMES = (OUTWARD, INWARD)  # of streams in the order in which `CudaCopies` makes them


class FakeEvent:
    """Done once the stream on which it was recorded comes to it."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.stream: FakeStream | None = None
        self.done = False

    def record(self, stream: FakeStream) -> None:
        self.stream = stream
        stream.put(self._pass)

    def _pass(self) -> None:
        self.done = True

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self._cuda.host_waits += 1
        if "host" not in self._cuda.dropped:
            self._cuda.move_until(lambda: self.done)


class FakeStream:
    """A queue of work, in which a `FakeEvent` stands for waiting for it."""

    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self._cuda = cuda
        self.name = name
        self.queue: deque[Callable[[], None] | FakeEvent] = deque()
        self.is_open = True

    def put(self, work: Callable[[], None] | FakeEvent) -> None:
        with self._cuda.lock:
            self.queue.append(work)
            self._cuda.moved(self)

    def wait_event(self, event: FakeEvent) -> None:
        assert event.stream is not None, "waits for an event that was never recorded"
        if (self.name, event.stream.name) not in self._cuda.dropped:
            self.put(event)

    def can_move(self) -> bool:
        if not self.queue or not self.is_open:
            return False
        head = self.queue[0]
        return not isinstance(head, FakeEvent) or head.done

    def move(self) -> None:
        head = self.queue.popleft()
        if not isinstance(head, FakeEvent):
            head()


class FakeCuda:
    """One device. `dropped` names orders that are left out: (waiting stream, stream waited for), or "host".

    With `eager` the computing stream does at once what is put on it, so that torch's own operations, which are done at
    once on a CPU, are in order with it; the others move only as far as it waits for them.
    """

    def __init__(self, seed: int = 0, dropped: Sequence[Any] = (), *, eager: bool = False) -> None:
        self.dropped = set(dropped)
        self.host_waits = 0
        self.recorded_streams: list[str] = []
        self.compute = FakeStream(self, COMPUTE)
        self.lock = threading.RLock()
        self._streams = [self.compute]
        self._eager = eager
        self._random = random.Random(seed)
        self._moves = ((0,), (0, 0, 1, 4), (8,))[seed % 3]  # far behind the host, at times, and close behind it
        self._memory: dict[int, np.ndarray] = {}  # by the address where it begins; never given back
        self._pinned: set[int] = set()
        self._here = threading.local()

    # streams

    def moved(self, stream: FakeStream) -> None:
        """After something was put on a stream: the device goes on, by chance."""
        if self._eager:
            while stream is self.compute and stream.queue:
                self._move_first(stream)
        else:
            for _ in range(self._random.choice(self._moves)):
                self._move_any()

    def move_until(self, is_reached: Callable[[], bool]) -> None:
        """As when the host waits."""
        while True:
            with self.lock:
                if is_reached():
                    return
                assert self._move_any(), "the host waits for what never comes"

    def finish(self) -> None:
        """Until nothing is left to do."""
        self.move_until(lambda: not any(stream.queue for stream in self._streams))

    def _move_any(self) -> bool:
        streams = [stream for stream in self._streams if stream.can_move()]
        if streams:
            self._random.choice(streams).move()
        return bool(streams)

    def _move_first(self, stream: FakeStream) -> None:
        head = stream.queue[0]
        while isinstance(head, FakeEvent) and not head.done:
            assert head.stream is not None
            self._move_first(head.stream)
        stream.move()

    def current_stream(self, device: object = None) -> FakeStream:
        return getattr(self._here, "stream", self.compute)

    def new_stream(self, device: torch.device) -> FakeStream:
        assert device == DEVICE
        self._streams.append(FakeStream(self, _NAMES[(len(self._streams) - 1) % len(_NAMES)]))
        return self._streams[-1]

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        assert self.current_device == DEVICE, "going back to the thread's own stream would make a context on its device"
        before, self._here.stream = self.current_stream(), stream
        yield
        self._here.stream = before

    # devices

    @property
    def current_device(self) -> torch.device:
        """Every thread begins on the first one."""
        return getattr(self._here, "device", torch.device("cuda", 0))

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self._here.device = self.current_device, device
        yield
        self._here.device = before

    # memory

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Memory of the current stream."""
        stream = self.current_stream()
        made, lent, whole = self._new(shape, dtype)
        stream.put(lambda: whole.fill(0xFF))  # work of the owner before
        weakref.finalize(lent, stream.put, lambda: whole.fill(0xFF)).atexit = False  # and of the one after
        return made

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Host memory, which torch's allocator lends to nobody else before copies are done with it."""
        made, *_ = self._new(shape, dtype)
        self._pinned.add(made.data_ptr())
        return made

    def tensor(self, values: torch.Tensor) -> torch.Tensor:
        """A tensor of the device that gets its values when the computing stream comes to it."""
        made = self.empty(values.shape, values.dtype)
        place = self.array(made)
        self.run(lambda: np.copyto(place, _bytes(values)))
        return made

    def array(self, tensor: torch.Tensor) -> np.ndarray:
        """A tensor's bytes, which does not keep the tensor."""
        address = tensor.data_ptr()
        return np.ctypeslib.as_array((ctypes.c_uint8 * tensor.nbytes).from_address(address))

    def run(self, work: Callable[[], None]) -> None:
        """Have the computing stream do something."""
        self.compute.put(work)

    def _new(self, shape: Sequence[int], dtype: torch.dtype) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        """A tensor, the array that lives as long as its storage, and the memory itself."""
        count = torch.Size(shape).numel()
        whole = np.full(max(count, 1) * dtype.itemsize, 0xFF, dtype=np.uint8)
        self._memory[whole.ctypes.data] = whole
        lent = whole[:]
        return torch.from_numpy(lent).view(dtype)[:count].view(tuple(shape)), lent, whole

    # what the code calls

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """On the current stream; memory of this device is not kept by that."""
        assert self.current_device == DEVICE
        assert (target.shape, target.dtype) == (source.shape, source.dtype)
        assert target.is_contiguous() and source.is_contiguous()
        kept = [None if self._is_own(tensor) else tensor for tensor in (target, source)]
        arrays = [self.array(tensor) for tensor in (target, source)]
        self.current_stream().put(lambda: (kept, np.copyto(*arrays))[1])

    def _is_own(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._memory

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the place of torch's own."""
        empty, copy, is_pinned = torch.empty, torch.Tensor.copy_, torch.Tensor.is_pinned

        def fake_empty(*shape: Any, pin_memory: bool = False, device: Any = None, **options: Any) -> torch.Tensor:
            if pin_memory:
                return self.pinned(*shape, **options)
            return self.empty(*shape, **options) if device == DEVICE else empty(*shape, device=device, **options)

        def fake_copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
            if not non_blocking:
                return copy(target, source)
            self.copy(target, source)
            return target

        def record_stream(tensor: torch.Tensor, stream: FakeStream) -> None:
            self.recorded_streams.append(stream.name)

        monkeypatch.setattr(torch, "empty", fake_empty)
        monkeypatch.setattr(torch.Tensor, "copy_", fake_copy)
        monkeypatch.setattr(torch.Tensor, "record_stream", record_stream)
        monkeypatch.setattr(torch.Tensor, "is_pinned", lambda t: t.data_ptr() in self._pinned or is_pinned(t))
        monkeypatch.setattr(torch.cuda, "Stream", self.new_stream)
        monkeypatch.setattr(torch.cuda, "Event", lambda *, blocking: FakeEvent(self))
        for name in ("current_stream", "stream", "device"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()
