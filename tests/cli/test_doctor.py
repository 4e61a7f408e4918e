"""`megavideo doctor`: the machine as a user reads it, and as JSON."""

from __future__ import annotations

import json

import pytest

from megavideo.cli.main import main
from megavideo.cli.verbs.doctor import describe_machine
from megavideo.parallel.accelerators import Accelerators, Gpu, Part

MACHINE = Accelerators(
    torch="2.11.0",
    cuda="13.0",
    gpus=(Gpu("NVIDIA H200", "9.0", 139.8),),
    parts=(Part("Transformer Engine", True, "2.20.2", "local layers"), Part("NCCL", False, "none built", "gloo")),
)


def test_missing_parts_say_what_runs_instead() -> None:
    lines = describe_machine(MACHINE).splitlines()
    assert lines[0] == "torch 2.11.0, built for CUDA 13.0"
    assert lines[1:3] == ["GPUs: 1", "  0  NVIDIA H200, compute capability 9.0, 139.8 GiB"]
    rows = [" ".join(line.split()) for line in lines[4:]]
    assert rows == ["yes Transformer Engine 2.20.2", "no NCCL none built", "instead: gloo"]


def test_doctor_looks_at_this_machine(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert set(found) == {"torch", "cuda", "gpus", "parts"}
    assert {part["name"] for part in found["parts"]} >= {"Transformer Engine", "NCCL", "gloo", "NVIDIA apex"}
    assert main(["doctor"]) == 0
    out = capfd.readouterr().out
    for part in found["parts"]:
        assert part["detail"] in out
        assert part["available"] or f"instead: {part['instead']}" in out


def test_doctor_has_no_settings(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "gpus=2"]) == 2
    assert "there is no such setting" in capfd.readouterr().err
    assert main(["doctor", "--help"]) == 0
    assert "megavideo doctor --json" in capfd.readouterr().out
