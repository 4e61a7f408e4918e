"""Micro-batches on the device: the same bits as copied at once, each begun before the one ahead is handed out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from megavideo.config.schema.train import RecomputeConfig
from megavideo.device.copies import DeviceCopies, ToDevice
from megavideo.device.cpu_copies import CpuCopies
from megavideo.device.cuda_copies import CudaCopies
from megavideo.device.late_copies import CopyFault, LateCopies
from megavideo.parity.packs import step_input
from megavideo.parity.spec import ParitySpec
from megavideo.testing.ranks import run_ranks
from megavideo.train.packs.loading import Loader
from megavideo.train.packs.noising import TrainBatch
from tests.device.fake_cuda import COMPUTE, DEVICE, INWARD, FakeCuda
from tests.train.copies_ranks import compare_copies

CPU = torch.device("cpu")
TERMS = ("temporal_consistency", "motion_smoothness", "perceptual")
SPEC = ParitySpec(heads=4, num_layers=2, tokens=48, packs_per_step=4, loss_terms=TERMS)
BATCHES = step_input(SPEC, 0, 0, 1).batches
DTYPES = (torch.float32, torch.bfloat16)
MAKES = {"cpu": CpuCopies, "late": LateCopies, "delayed": lambda: LateCopies(0.002)}


def same(one: TrainBatch, two: TrainBatch) -> bool:
    pairs = list(zip(one.tensors(), two.tensors(), strict=True))
    return (
        all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
        and (one.pack.sample_ids, one.pack.visits) == (two.pack.sample_ids, two.pack.visits)
        and (one.pack.bounds, one.pack.text_bounds) == (two.pack.bounds, two.pack.text_bounds)
    )


def test_all_tensors_of_a_batch_are_in_it() -> None:
    batch = BATCHES[0]
    assert batch.terms is not None
    parts = (batch.pack, batch, batch.terms)
    found = [getattr(part, field.name) for part in parts for field in dataclasses.fields(part)]
    assert {id(t) for t in found if isinstance(t, torch.Tensor)} == {id(t) for t in batch.tensors()}
    assert same(batch.with_tensors(batch.tensors()), batch)


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_models_inputs_are_cast(dtype: torch.dtype) -> None:
    for batch in BATCHES:
        cast = batch.to(CPU, dtype)
        assert torch.equal(cast.pack.tokens, batch.pack.tokens.to(dtype)) and cast.pack.tokens.dtype == dtype
        assert torch.equal(cast.pack.text, batch.pack.text.to(dtype)) and cast.pack.text.dtype == dtype
        pack = dataclasses.replace(cast.pack, tokens=batch.pack.tokens, text=batch.pack.text)
        assert same(dataclasses.replace(cast, pack=pack), batch)


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_arrive_as_they_are(make: Callable[[], DeviceCopies], dtype: torch.dtype) -> None:
    copies = make()
    for given in (BATCHES, tuple(batch.staged(copies, dtype) for batch in BATCHES)):
        arrived = list(Loader(copies, dtype).on_device(given))
        assert len(arrived) == len(BATCHES)
        assert all(same(one, two.to(CPU, dtype)) for one, two in zip(arrived, BATCHES, strict=True))


@pytest.mark.parametrize(("dropped", "right"), [((), True), ([(COMPUTE, INWARD)], False)])
def test_batches_arrive_by_streams(dropped: Sequence[Any], right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [batch.to(CPU, torch.bfloat16) for batch in BATCHES]
    cuda = FakeCuda(dropped=dropped, eager=True)
    cuda.install(monkeypatch)
    copies = CudaCopies(DEVICE)
    staged = [batch.staged(copies, torch.bfloat16) for batch in BATCHES]
    assert all(tensor.is_pinned() for batch in staged for tensor in batch.tensors() if tensor.numel())
    arrived = list(Loader(copies, torch.bfloat16).on_device(staged))
    assert all(same(one, two) for one, two in zip(arrived, expected, strict=True)) is right
    assert cuda.host_waits == 0 and not copies._coming


class Told(CpuCopies):
    """Tells when copies begin."""

    def __init__(self) -> None:
        self.begun = 0

    def to_device(self, tensors: Sequence[torch.Tensor]) -> ToDevice:  # type: ignore[override]
        self.begun += 1
        return super().to_device(tensors)


def test_each_copy_begins_before_the_one_ahead_is_handed_out() -> None:
    copies = Told()
    loaded = Loader(copies, torch.float32).on_device(BATCHES)
    assert copies.begun == 0  # a stage of a pipeline that takes none copies none
    assert [copies.begun for _ in loaded] == [2, 3, 4, 4]


def test_a_batch_that_is_written_to_while_it_is_copied_is_told() -> None:
    copies = LateCopies()
    staged = [batch.staged(copies, torch.float32) for batch in BATCHES]
    loaded = Loader(copies, torch.float32).on_device(staged)
    next(loaded)
    staged[1].target.zero_()
    with pytest.raises(CopyFault, match="changed before it was copied"):
        next(loaded)


OFFLOADED = RecomputeConfig(kind="full", offload=True)
FP32 = ParitySpec(heads=4, num_layers=2, tokens=48, packs_per_step=4, recompute=OFFLOADED)
BF16 = dataclasses.replace(FP32, precision="bf16")
DEEP = dataclasses.replace(FP32, num_layers=4)


@pytest.mark.parametrize(
    ("processes", "cases"),
    [
        pytest.param(1, [(BF16, ["zero1"])], id="one"),
        pytest.param(2, [(FP32, ["tp2-sp-zero1", "pp2"]), (DEEP, ["pp2-dualpipev"])], id="two"),
        pytest.param(
            2, [(BF16, ["dp2-zero3", "cp2-ring-zero1"]), (FP32, ["dp2-zero2-offload"])], id="more",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_training_comes_to_the_same_with_late_copies(
    tmp_path: Path, processes: int, cases: list[tuple[ParitySpec, list[str]]]
) -> None:
    """Inputs and offloaded activations: bit for bit. Where nobody waits, not even a loss comes out."""
    for number, (spec, layouts) in enumerate(cases):
        for rank in run_ranks(compare_copies, (spec, layouts), tmp_path / str(number), processes=processes):
            for layout in layouts:
                plain, late, unordered = (rank[layout][name] for name in ("cpu", "late", "unordered"))
                assert late == plain and plain["users"] >= 2
                assert all(math.isfinite(loss) for loss in plain["losses"])
                assert not any(math.isfinite(loss) for loss in unordered["losses"])
