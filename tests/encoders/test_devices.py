"""Encoders on machines with GPUs, as far as a pretended one shows: which device, how many workers, which numbers."""

from __future__ import annotations

from multiprocessing import SimpleQueue
from pathlib import Path
from typing import Any

import pytest
import torch

from megavideo.encoders.captioner import local
from megavideo.encoders.captioner.local import LocalModel
from megavideo.encoders.encode import pool
from megavideo.encoders.pretrained import compute_device
from tests.encoders.tiny_captioners import make_language_model


def pretend(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 2)
    assert compute_device() == torch.device("cuda")
    pretend(monkeypatch, 0)
    assert compute_device() == torch.device("cpu")


def test_a_worker_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 8)
    assert [pool.choose_workers(None, jobs) for jobs in (100, 3, 1)] == [8, 3, 0]
    pretend(monkeypatch, 0)
    assert pool.choose_workers(None, 100) == 0


def test_workers_have_gpus_of_their_own_and_share_the_cores_without(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: Any = SimpleQueue()
    for number in range(4):
        numbers.put(number)
    seen: list[tuple[str, int]] = []
    setting: Any = object()
    monkeypatch.setattr(pool._Worker, "setting", None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: seen.append(("gpu", device)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: seen.append(("threads", count)))
    pretend(monkeypatch, 3)
    for _ in range(5):  # the fifth takes the place of one that died
        pool._begin_worker(setting, 4, numbers)
    pretend(monkeypatch, 0)
    pool._begin_worker(setting, 4, numbers)
    assert seen == [("gpu", 0), ("gpu", 1), ("gpu", 2), ("gpu", 0), ("gpu", 0), ("threads", 2)]
    assert pool._Worker.setting is setting


@pytest.mark.parametrize(("kind", "dtype"), [("cuda", torch.float16), ("cpu", torch.float32)])
def test_a_captioner_keeps_float16_on_a_gpu_alone(
    kind: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    folder = make_language_model(tmp_path / "text")
    LlamaForCausalLM.from_pretrained(folder).half().save_pretrained(folder)
    moved: list[torch.device] = []
    monkeypatch.setattr(local, "compute_device", lambda: torch.device(kind))
    monkeypatch.setattr(LlamaForCausalLM, "to", lambda self, device: moved.append(device) or self)
    model = LocalModel("captioner", str(folder), 4, None)
    assert model._model.dtype == dtype and moved == [torch.device(kind)]
