"""Copies of a GPU keep every order they need, whatever its streams do meanwhile; each order left out shows."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch

from megavideo.device.choice import copies_for
from megavideo.device.cuda_copies import CudaCopies
from tests.device.fake_cuda import COMPUTE, DEVICE, INWARD, OUTWARD, FakeCuda

SEEDS = range(40)
Scenario = Callable[[FakeCuda, CudaCopies], bool]


def numbers(begin: float, count: int = 6) -> torch.Tensor:
    return torch.arange(begin, begin + count)


def in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def seen_by_compute(cuda: FakeCuda, tensor: torch.Tensor) -> torch.Tensor:
    """What the computing stream finds in a tensor, once it comes to that."""
    found, place = torch.empty_like(tensor), cuda.array(tensor)
    cuda.run(lambda: np.copyto(cuda.array(found), place))
    return found


def snapshot(cuda: FakeCuda, copies: CudaCopies) -> bool:
    """States are made, copied by a thread, and changed once they are copied."""
    states = [cuda.tensor(numbers(10.0 * i)) for i in range(3)]
    final = copies.final(states)
    places = [copies.buffer((6,), torch.float32) for _ in states]
    cuda.run(lambda: None)  # passes go on
    in_a_thread(lambda: final.to_host(list(zip(places, states, strict=True))).wait())
    for state in states:
        cuda.run(lambda state=state: cuda.array(state).fill(0))
    cuda.finish()
    return all(torch.equal(place, numbers(10.0 * i)) for i, place in enumerate(places))


def offload(cuda: FakeCuda, copies: CudaCopies) -> bool:
    """Tensors leave and are let go, and come back in the reverse order, each fetched ahead."""
    left, found = [], []
    for i in range(6):
        tensor = cuda.tensor(numbers(10.0 * i))
        left.append(copies.final([tensor]).to_host([(copies.buffer((6,), torch.float32), tensor)]))
        del tensor
    ahead = None
    for copy in reversed(left):
        coming, ahead = ahead or copy.back(), None
        if left.index(copy) > 0:
            ahead = left[left.index(copy) - 1].back()
        (tensor,) = coming.get()
        found.append(seen_by_compute(cuda, tensor))
        del tensor, coming
    cuda.finish()
    return all(torch.equal(values, numbers(50.0 - 10.0 * i)) for i, values in enumerate(found))


def load(cuda: FakeCuda, copies: CudaCopies) -> bool:
    """Inputs come from the host, each copied before the one ahead is used."""
    found = []
    begun = [copies.to_device([copies.staged(numbers(10.0 * i), torch.bfloat16)]) for i in range(2)]
    for copy in begun:
        (tensor,) = copy.get()
        found.append(seen_by_compute(cuda, tensor))
    cuda.finish()
    return all(torch.equal(values, numbers(10.0 * i).bfloat16()) for i, values in enumerate(found))


def run(scenario: Scenario, seed: int, dropped: list[object], monkeypatch: pytest.MonkeyPatch) -> bool:
    cuda = FakeCuda(seed, dropped)
    with monkeypatch.context() as patch:
        cuda.install(patch)
        return scenario(cuda, CudaCopies(DEVICE))


@pytest.mark.parametrize("scenario", [snapshot, offload, load])
def test_values_arrive_whatever_the_streams_do(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(run(scenario, seed, [], monkeypatch) for seed in SEEDS)


@pytest.mark.parametrize(
    ("scenario", "dropped"),
    [
        (snapshot, (OUTWARD, COMPUTE)),  # the source is not final yet
        (snapshot, "host"),  # the states change before they are copied
        (offload, (OUTWARD, COMPUTE)),
        (offload, (COMPUTE, OUTWARD)),  # the source's memory is used again
        (offload, (INWARD, OUTWARD)),  # it comes back before it has left
        (offload, (INWARD, COMPUTE)),  # the target's memory is still in use
        (offload, (COMPUTE, INWARD)),  # it is used before it has come
        (load, (INWARD, COMPUTE)),
        (load, (COMPUTE, INWARD)),
    ],
)
def test_an_order_left_out_shows(scenario: Scenario, dropped: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not all(run(scenario, seed, [dropped], monkeypatch) for seed in SEEDS)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    made = FakeCuda()
    made.install(monkeypatch)
    return made


@pytest.mark.parametrize("scenario", [offload, load])
def test_the_host_waits_for_snapshots_alone(scenario: Scenario, cuda: FakeCuda) -> None:
    assert scenario(cuda, CudaCopies(DEVICE))
    assert cuda.host_waits == 0


def test_a_gpu_has_streams_for_its_copies(cuda: FakeCuda) -> None:
    copies = copies_for(DEVICE)
    assert isinstance(copies, CudaCopies)
    assert copies._outward is not copies._inward and copies._inward is not cuda.compute


def test_waiting_is_for_the_copies_alone(cuda: FakeCuda) -> None:
    """What the computing stream is given after the states were final does not have to be done."""
    copies = CudaCopies(DEVICE)
    state = cuda.tensor(numbers(1.0))
    final = copies.final([state])
    cuda.move_until(lambda: not cuda.compute.queue)
    cuda.compute.is_open = False
    cuda.run(lambda: None)
    place = copies.buffer((6,), torch.float32)
    copy = final.to_host([(place, state)])
    copy.wait()
    assert copy.ready() and torch.equal(place, numbers(1.0))
    assert cuda.compute.queue


def leave(cuda: FakeCuda, copies: CudaCopies, count: int) -> tuple[list[weakref.ref[torch.Tensor]], list[object]]:
    """Tensors that only the copies hold, and their handles."""
    tensors, handles = [], []
    for i in range(count):
        tensor = cuda.tensor(numbers(float(i)))
        handles.append(copies.final([tensor]).to_host([(copies.buffer((6,), torch.float32), tensor)]))
        tensors.append(weakref.ref(tensor))
    return tensors, handles


def test_few_sources_are_held_however_far_the_host_runs_ahead(cuda: FakeCuda) -> None:
    copies = CudaCopies(DEVICE)
    copies._outward.is_open = False  # type: ignore[attr-defined]
    tensors, handles = leave(cuda, copies, 6)
    assert [tensor() is not None for tensor in tensors] == [False] * 4 + [True] * 2
    copies._outward.is_open = True  # type: ignore[attr-defined]
    cuda.finish()
    assert len(handles) == 6
    assert copies.to_device([numbers(0.0)]).get()  # at the next call, what is done is let go
    assert all(tensor() is None for tensor in tensors)


def test_what_was_got_is_not_held(cuda: FakeCuda) -> None:
    copies = CudaCopies(DEVICE)
    (tensor,) = copies.to_device([numbers(0.0)]).get()
    held = weakref.ref(tensor)
    del tensor
    gc.collect()
    assert held() is None


def test_what_nobody_gets_is_held_until_it_is_copied(cuda: FakeCuda) -> None:
    copies = CudaCopies(DEVICE)
    copies._inward.is_open = False  # type: ignore[attr-defined]
    held = weakref.ref(copies.to_device([numbers(0.0)])._tensors[0])
    gc.collect()
    assert held() is not None
    copies._inward.is_open = True  # type: ignore[attr-defined]
    cuda.finish()
    copies.to_device([numbers(0.0)]).get()
    assert held() is None


def test_another_stream_than_the_memorys_is_noted(cuda: FakeCuda) -> None:
    copies = CudaCopies(DEVICE)
    coming, other = copies.to_device([numbers(0.0)]), cuda.new_stream(DEVICE)
    with cuda.device(DEVICE), cuda.stream(other):
        coming.get()
    assert cuda.recorded_streams == [other.name]


def test_what_is_staged_is_not_staged_again(cuda: FakeCuda) -> None:
    copies = CudaCopies(DEVICE)
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    staged = copies.staged(values, torch.bfloat16)
    assert staged.is_pinned() and torch.equal(staged, values.bfloat16())
    assert copies.staged(staged, torch.bfloat16) is staged
    assert copies.staged(staged, torch.float32) is not staged
