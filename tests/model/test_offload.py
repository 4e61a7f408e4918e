"""Inputs of recomputed functions wait on the host: the same gradients, by copies that are late and may reorder."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch

from megavideo.device.copies import DeviceCopies
from megavideo.device.cpu_copies import CpuCopies
from megavideo.device.cuda_copies import CudaCopies
from megavideo.device.late_copies import CopyFault, LateCopies
from megavideo.model import offload as offload_module
from megavideo.model.layers import LocalLayers
from megavideo.model.offload import Offload
from megavideo.model.recompute import BlockRecompute, saved_bytes
from tests.device.fake_cuda import COMPUTE, DEVICE, INWARD, OUTWARD, FakeCuda
from tests.model.test_recompute import CASES, gradients, make_batch, make_model

OFFLOADED = [case for case in CASES if case.endswith("offloaded")]
STAND_INS = {"cpu": CpuCopies, "late": LateCopies, "delayed": lambda: LateCopies(0.002)}


def with_copies(case: str, copies: DeviceCopies) -> dict[str, torch.Tensor]:
    return gradients(make_model(CASES[case], layers=LocalLayers(copies=copies)))


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return gradients(make_model(None))


@pytest.mark.parametrize("make", STAND_INS.values(), ids=STAND_INS)
@pytest.mark.parametrize("case", OFFLOADED)
def test_no_number_changes(case: str, make: Callable[[], DeviceCopies], expected: dict[str, torch.Tensor]) -> None:
    assert same(with_copies(case, make()), expected)


@pytest.mark.parametrize("case", OFFLOADED)
def test_no_number_changes_on_streams(
    case: str, expected: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(eager=True)
    cuda.install(monkeypatch)
    copies = CudaCopies(DEVICE)
    model = make_model(CASES[case], layers=LocalLayers(copies=copies))
    for _ in range(2):  # steps
        model.zero_grad()
        assert same(gradients(model), expected)
    gc.collect()
    assert cuda.host_waits == 0
    assert not copies._leaving and not copies._coming  # the device holds nothing between steps


@pytest.mark.parametrize("dropped", [(INWARD, OUTWARD), (COMPUTE, INWARD)])
def test_an_order_left_out_shows(
    dropped: tuple[str, str], expected: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(dropped=[dropped], eager=True)
    cuda.install(monkeypatch)
    assert not same(with_copies("full offloaded", CudaCopies(DEVICE)), expected)


@pytest.mark.parametrize("make", STAND_INS.values(), ids=STAND_INS)
def test_what_waits_on_the_host_does_not_count(make: Callable[[], DeviceCopies]) -> None:
    def kept(case: str) -> int:
        model, batch = make_model(CASES[case], layers=LocalLayers(copies=make())), make_batch()
        return saved_bytes(lambda: model(batch), model.parameters())

    from_cpu = make_model(CASES["full offloaded"]), make_batch()
    assert kept("full offloaded") == saved_bytes(lambda: from_cpu[0](from_cpu[1]), from_cpu[0].parameters())
    assert kept("full offloaded") < kept("full")


def chain(offload: Offload, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An input and the sum of a chain of squares, each of which keeps its input on the host."""
    x = torch.linspace(0.9, 1.1, 5, requires_grad=True)
    out = x * 1.0
    share = BlockRecompute(frozenset(("square",)), offload)
    for _ in range(count):
        out = share.run("square", torch.square, out)
    return x, out.sum()


def test_each_is_fetched_while_the_one_kept_after_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    kept = offload_module._Kept
    fetch, give_back, make = kept.fetch, kept.give_back, kept.__init__

    def begin(self: object, *given: object) -> None:
        make(self, *given)  # type: ignore[misc, arg-type]
        numbers[id(self)] = len(numbers)

    numbers: dict[int, int] = {}
    monkeypatch.setattr(kept, "__init__", begin)
    monkeypatch.setattr(kept, "fetch", lambda self: (order.append(f"fetch {numbers[id(self)]}"), fetch(self))[1])
    monkeypatch.setattr(kept, "give_back", lambda self: (order.append(f"use {numbers[id(self)]}"), give_back(self))[1])
    x, loss = chain(Offload(CpuCopies()), 3)
    loss.backward()
    assert order == ["use 2", "fetch 1", "use 1", "fetch 0", "use 0"]
    torch.testing.assert_close(x.grad, 8 * x.detach() ** 7)


def test_a_kept_graph_gives_its_tensors_twice() -> None:
    x, loss = chain(Offload(LateCopies()), 3)
    loss.backward(retain_graph=True)
    (once,) = (torch.zeros_like(x) if x.grad is None else x.grad.clone(),)
    loss.backward()
    assert x.grad is not None and torch.equal(x.grad, 2 * once)


def test_a_graph_that_is_dropped_leaves_nothing() -> None:
    offload = Offload(CpuCopies())
    _, loss = chain(offload, 3)
    assert offload._last is not None
    last = weakref.ref(offload._last())
    assert last() is not None
    del loss
    gc.collect()
    assert last() is None
    x, loss = chain(offload, 2)
    loss.backward()
    torch.testing.assert_close(x.grad, 4 * x.detach() ** 3)


def test_writing_to_a_tensor_whose_copy_is_under_way_is_told() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    twice = 2 * x
    with Offload(LateCopies()).context():
        out = twice.square().sum()
    twice.data.zero_()
    with pytest.raises(CopyFault, match="changed before it was copied"):
        out.backward()


def test_a_configuration_with_offload_needs_a_place() -> None:
    with pytest.raises(AssertionError, match="no place to wait in"):
        BlockRecompute.of(CASES["full offloaded"], 0, 4)
