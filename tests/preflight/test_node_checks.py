"""What a rank finds on its node, on pretended GPUs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megavideo.config.schema.preflight import PreflightLimits, PreflightRun
from megavideo.preflight import node_checks
from megavideo.preflight.judge import RankAnswer
from megavideo.preflight.node_checks import check_gpu, check_versions
from megavideo.preflight.run import _Preflight

GPUS = [torch.device("cuda", index) for index in range(2)]
FREE = {GPUS[0]: (79e9, 80e9), GPUS[1]: (40e9, 80e9)}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "mem_get_info", FREE.__getitem__)
    monkeypatch.setattr(node_checks, "_uncorrected_errors", lambda: None)


@pytest.mark.usefixtures("node")
def test_gpus_are_counted_and_must_be_free(monkeypatch: pytest.MonkeyPatch) -> None:
    good = check_gpu(GPUS[:1], PreflightLimits(gpus_per_node=2))
    assert good.good and good.text == "2 x NVIDIA H100"
    taken = check_gpu(GPUS, PreflightLimits())
    assert not taken.good and taken.text == "GPU 1 has 40.0 of 80.0 GB free: something else is on it"
    # nvidia-smi sees those that the launcher hides
    monkeypatch.setattr(node_checks, "_uncorrected_errors", lambda: [0, 0, 3, 0])
    bad = check_gpu(GPUS[:1], PreflightLimits(gpus_per_node=2))
    assert not bad.good and "4 GPUs, expected 2" in bad.text and "GPU 2 had 3 uncorrected" in bad.text
    assert check_gpu([torch.device("cpu")], PreflightLimits()).text.startswith("GPU 2 had 3")


def test_versions_of_cuda_and_nccl_are_compared_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 28, 9))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for available in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        measured: Any = check_versions().measured
        assert measured.get("nccl") == ("2.28.9" if available else None)
        assert measured.get("cuda") == ("13.0" if available else None)


@pytest.mark.parametrize(("device", "backends"), [(GPUS[1], "cpu:gloo,cuda:nccl"), (torch.device("cpu"), "gloo")])
def test_the_group_has_gloo_for_clocks_beside_nccl(
    device: torch.device, backends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def init(backend: str, **options: Any) -> None:
        asked.append(backend)
        raise RuntimeError("no further")

    monkeypatch.setattr(dist, "init_process_group", init)
    meeting: Any = SimpleNamespace(store=dist.HashStore(), rank=0, world_size=2)
    preflight = _Preflight(PreflightRun(check_seconds=5.0), meeting, {0: "a", 1: "b"}, device, float, None)
    answer = preflight._meet_others(RankAnswer(()))
    assert asked == [backends] and answer.link_faults == ("clocks and links were not measured: no further",)
