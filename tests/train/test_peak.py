"""Which peak MFU is measured against."""

from __future__ import annotations

import pytest
import torch

from megavideo.train.health.peak import peak_flops_per_second

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GB200", 2500.0),
    ],
)
def test_a_gpu_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str, tflops: float) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops_per_second(GPU, torch.bfloat16, None) == tflops * 1e12


def test_one_that_is_not_known_has_none_unless_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    assert peak_flops_per_second(GPU, torch.bfloat16, None) is None
    assert peak_flops_per_second(GPU, torch.bfloat16, 2.0) == 2e12


def test_a_cpu_is_measured() -> None:
    assert 1e8 < (peak_flops_per_second(CPU, torch.float32, None) or 0.0) < 1e14
