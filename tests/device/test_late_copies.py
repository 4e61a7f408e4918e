"""The stand-in is late, and tells who did not wait; the CPU's own copies do what the protocol says."""

from __future__ import annotations

import pytest
import torch

from megavideo.device.choice import copies_for
from megavideo.device.copies import DeviceCopies
from megavideo.device.cpu_copies import CpuCopies
from megavideo.device.late_copies import CopyFault, LateCopies

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool)


def made(dtype: torch.dtype = torch.float32, *shape: int) -> torch.Tensor:
    return torch.randint(0, 2, shape or (3, 4), generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("copies", [CpuCopies(), LateCopies(), LateCopies(0.05)], ids=["cpu", "late", "delayed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_go_to_the_host_and_back(copies: DeviceCopies, dtype: torch.dtype) -> None:
    sources = [made(dtype), made(dtype, 5).requires_grad_(dtype.is_floating_point), made(dtype, 2, 6).T, made(dtype, 0)]
    places = [copies.buffer(source.shape, source.dtype) for source in (*sources, made(dtype)[0, 0])]
    sources.append(made(dtype)[0, 0])  # a number, as the optimizer's count of steps
    copy = copies.final(sources).to_host(list(zip(places, sources, strict=True)))
    back = copy.back()
    copy.wait()
    assert copy.ready()
    for place, returned, source in zip(places, back.get(), sources, strict=True):
        assert torch.equal(place, source) and torch.equal(returned, source)
        assert not returned.requires_grad
    assert back.ready()


@pytest.mark.parametrize("copies", [CpuCopies(), LateCopies(), LateCopies(0.05)], ids=["cpu", "late", "delayed"])
def test_values_go_to_the_device(copies: DeviceCopies) -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))
    wide, narrow = copies.to_device([copies.staged(values, dtype) for dtype in (torch.float32, torch.bfloat16)]).get()
    assert torch.equal(wide, values) and torch.equal(narrow, values.to(torch.bfloat16))
    staged = copies.staged(values, torch.bfloat16)
    assert copies.staged(staged, torch.bfloat16) is staged
    assert torch.equal(copies.staged(staged, torch.float32), staged.float())


def test_a_cpu_has_its_own() -> None:
    assert isinstance(copies_for(torch.device("cpu")), CpuCopies)
    source = made()
    assert CpuCopies().staged(source, source.dtype) is source
    assert not CpuCopies.pinned


@pytest.mark.parametrize(("dtype", "poison"), [(torch.float32, None), (torch.bfloat16, None), (torch.int64, -1)])
def test_targets_hold_poison_until_the_copy_is_waited_for(dtype: torch.dtype, poison: int | None) -> None:
    copies, source = LateCopies(), made(dtype)
    place = copies.buffer(source.shape, dtype)
    copy = copies.final([source]).to_host([(place, source)])
    assert not copy.ready()
    assert bool(place.isnan().all()) if poison is None else bool((place == poison).all())
    coming = copies.to_device([made(dtype)])
    (target,) = coming._made  # type: ignore[attr-defined]
    assert bool(target.isnan().all()) if poison is None else bool((target == poison).all())
    copy.wait()
    assert torch.equal(place, source) and torch.equal(coming.get()[0], source)


@pytest.mark.parametrize("delay_seconds", [None, 0.05])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda source, place: source.mul_(2), "source .* changed before it was copied"),
        (lambda source, place: source.data.mul_(2), "source .* changed"),  # unseen by autograd
        (lambda source, place: source.untyped_storage().resize_(0), "source .* freed before it was copied"),
        (lambda source, place: place.zero_(), "target .* changed before it was copied"),
    ],
)
def test_what_must_stay_is_watched(delay_seconds: float | None, change: object, told: str) -> None:
    copies, source = LateCopies(delay_seconds), made() + 1.0
    place = copies.buffer(source.shape, source.dtype)
    final = copies.final([source])
    copy = final.to_host([(place, source)])
    change(source, place)  # type: ignore[operator]
    with pytest.raises(CopyFault, match=told):
        copy.wait()
    with pytest.raises(CopyFault, match=told):  # and again, to whoever asks
        copy.back().get()


def test_a_source_that_changes_before_the_copy_begins_is_told() -> None:
    copies, source = LateCopies(), made() + 1.0
    final = copies.final([source])
    source.mul_(2)  # as an update that came first
    copy = final.to_host([(copies.buffer(source.shape, source.dtype), source)])
    with pytest.raises(CopyFault, match="changed before it was copied"):
        copy.wait()


def test_what_was_not_said_to_be_final_is_refused() -> None:
    copies = LateCopies()
    with pytest.raises(CopyFault, match="was not said to be final"):
        copies.final([made()]).to_host([(copies.buffer((2,), torch.float32), made(torch.float32, 2))])


def test_inputs_that_change_on_their_way_are_told() -> None:
    copies, values = LateCopies(), made() + 1.0
    coming = copies.to_device([values])
    values.zero_()  # as a host buffer that is filled again too early
    with pytest.raises(CopyFault, match="changed before it was copied"):
        coming.get()


def test_going_back_without_the_copy_to_the_host_is_told() -> None:
    copies, source = LateCopies(), made()
    place = copies.buffer(source.shape, source.dtype)
    copy = copies.final([source]).to_host([(place, source)])
    with pytest.raises(CopyFault, match="before the copy to the host was waited for"):
        copies.to_device([place])
    copy.wait()
    assert torch.equal(copies.to_device([place]).get()[0], source)
