"""What a machine has, what runs instead of what it has not, and what is refused on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megavideo.config.schema.precision import LayersConfig
from megavideo.errors import ConfigError
from megavideo.parallel.machine import accelerators
from megavideo.parallel.machine.accelerators import Part, check_layers, detect
from tests.parallel import te_stand_in

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
TE = LayersConfig(engine="te")


def part(name: str) -> Part:
    return next(part for part in detect().parts if part.name == name)


def test_every_missing_part_says_what_runs_instead() -> None:
    found = detect()
    assert found.torch == torch.__version__
    assert len(found.gpus) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert len({part.name for part in found.parts}) == len(found.parts) == 9
    for entry in found.parts:
        assert entry.detail
        assert entry.instead


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_machine_without_gpu() -> None:
    assert detect().gpus == ()
    for name in ("Transformer Engine", "FP8 (mxfp8)", "NCCL"):
        assert not part(name).available
    assert "no NVIDIA GPU" in part("Transformer Engine").detail
    assert part("NCCL").instead == "gloo"
    assert part("gloo").available
    assert part("fused AdamW (torch)").available


def test_apex_is_known_by_its_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def find(name: str) -> object:
        asked.append(name)
        return None if name in ("amp_C", "transformer_engine") else object()

    monkeypatch.setattr(accelerators, "find_spec", find)
    assert not part("NVIDIA apex").available
    assert "apex" not in asked
    monkeypatch.setattr(accelerators, "find_spec", lambda name: object())
    assert part("NVIDIA apex").available


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_detection_imports_neither_te_nor_megatron(repo_root: Path) -> None:
    code = (
        "import sys, megavideo.parallel.machine.accelerators as a; a.detect();"
        "sys.exit(any(name.split('.')[0] in ('transformer_engine', 'megatron', 'deepspeed') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=repo_root, timeout=120).returncode == 0


def test_te_without_gpu_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        check_layers(TE, CPU)
    assert (caught.value.field, caught.value.value) == ("layers.engine", "te")
    assert "GPU" in caught.value.rule
    assert "layers=local" in caught.value.remedy
    check_layers(LayersConfig(), CPU)


def test_chip_without_the_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    te_stand_in.install(monkeypatch)
    for fp8 in ("none", "current", "delayed", "block"):
        check_layers(LayersConfig(engine="te", fp8=fp8), GPU)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"layers\.fp8='mxfp8': NVIDIA H100 cannot run it.*10\.0.*layers\.fp8=current"
    ):
        check_layers(LayersConfig(engine="te", fp8="mxfp8"), GPU)


def test_te_that_is_missing_or_does_not_load_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    te_stand_in.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", None)
    with pytest.raises(ConfigError, match=r"cannot be loaded: .*import.*megavideo\[gpu\]"):
        check_layers(TE, GPU)
    monkeypatch.setattr(accelerators, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="is not installed"):
        check_layers(TE, GPU)
