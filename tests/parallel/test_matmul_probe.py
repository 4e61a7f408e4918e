"""The probe's product: one wrong number in it is found, and its time is a time."""

from __future__ import annotations

import pytest
import torch

from megavideo.parallel.machine.matmul_probe import MatmulProbe

CPU = torch.device("cpu")


def test_a_right_product_and_its_time() -> None:
    probe = MatmulProbe(CPU)
    assert all(probe.is_right(seed) for seed in range(4))
    assert 0 < probe.seconds() < 10


def test_a_gpu_has_a_product_that_takes_it_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: self)
    assert MatmulProbe(torch.device("cuda", 0))._here[0].shape == (4096, 4096)
    assert MatmulProbe(CPU)._here[0].shape == (384, 384)


@pytest.mark.parametrize("place", [(0, 0), (17, 300), (383, 383)])
def test_one_wrong_number_is_found(monkeypatch: pytest.MonkeyPatch, place: tuple[int, int]) -> None:
    probe = MatmulProbe(CPU)
    right = probe._product()
    wrong = right.clone()
    wrong[place] += 1
    monkeypatch.setattr(probe, "_product", lambda: wrong)
    assert not probe.is_right()
    assert torch.equal(right.double(), probe._left.double() @ probe._right.double())  # float32 holds it
