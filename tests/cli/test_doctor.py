"""`megavideo doctor`: the machine as a user reads it, and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megavideo.cli.main import main
from megavideo.cli.verbs.doctor import describe_machine
from megavideo.parallel.attention.report import KernelReport, KernelSpeed
from megavideo.parallel.attention.timing import Speed
from megavideo.parallel.machine.accelerators import Gpu, Part
from megavideo.parallel.machine_report import MachineReport
from megavideo.testing.dataset import write_dataset

MACHINE = MachineReport(
    torch="2.11.0",
    cuda="13.0",
    gpus=(Gpu("NVIDIA H200", "9.0", 139.8),),
    parts=(Part("Transformer Engine", True, "2.20.2", "local layers"), Part("NCCL", False, "none built", "gloo")),
    kernels=(
        KernelReport("fa4", "flash attention 4", None, "flash-attn-4 is not installed", "pip install it", False),
        KernelReport("fa2", "flash attention 2", "2.11.0", "", "", True),
        KernelReport("cpu", "on CPUs", None, "it computes on a CPU, and this process has a GPU", "", False),
    ),
    speeds=(
        KernelSpeed("fa2", "self", Speed("fa2", 1.25, 3.5, 370.25, 322.0)),
        KernelSpeed("fa2", "text", None, "RuntimeError: out of memory"),
    ),
)


def test_missing_parts_say_what_runs_instead() -> None:
    lines = describe_machine(MACHINE).splitlines()
    assert lines[0] == "torch 2.11.0, built for CUDA 13.0"
    assert lines[1:3] == ["GPUs: 1", "  0  NVIDIA H200, compute capability 9.0, 139.8 GiB"]
    rows = [" ".join(line.split()) for line in lines[4:]]
    assert rows[:3] == ["yes Transformer Engine 2.20.2", "no NCCL none built", "instead: gloo"]
    assert rows[5:11] == [
        "no fa4 flash attention 4",
        "flash-attn-4 is not installed",
        "pip install it",
        "auto fa2 flash attention 2 (2.11.0)",
        "no cpu on CPUs",
        "it computes on a CPU, and this process has a GPU",
    ]
    assert rows[12:] == [
        "kernel attends ms TFLOP/s ms TFLOP/s forward, backward",
        "fa2 self 1.250 370 3.500 322",
        "fa2 text FAILED: RuntimeError: out of memory",
    ]


def test_doctor_looks_at_this_machine(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert set(found) == {"torch", "cuda", "gpus", "parts", "kernels", "speeds"}
    assert {kernel["name"] for kernel in found["kernels"]} == {"cpu", "fa4", "fa3", "te", "cudnn", "fa2"}
    assert sum(kernel["taken"] for kernel in found["kernels"]) == 1
    assert {part["name"] for part in found["parts"]} >= {"Transformer Engine", "NCCL", "gloo", "NVIDIA apex"}
    assert main(["doctor"]) == 0
    out = capfd.readouterr().out
    for part in found["parts"]:
        assert part["detail"] in out
        assert part["available"] or f"instead: {part['instead']}" in out


def test_kernels_are_timed_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    shape = ["attention.tokens=65", "attention.text_tokens=9", "attention.segments=2", "attention.heads=2"]
    assert main(["doctor", "attention.time=true", *shape, "attention.head_dim=16", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["speeds"]
    assert [(row["attends"], row["fault"]) for row in rows if row["kernel"] == "cpu"] == [("self", ""), ("text", "")]
    for row in rows:
        assert all(
            row["speed"][name] > 0 for name in ("forward_ms", "backward_ms", "forward_tflops", "backward_tflops")
        )
    assert main(["doctor", "attention.time=false", "attention.tokens=64"]) == 2
    assert "without effect" in capfd.readouterr().err
    assert main(["doctor", "attention.tokens=3"]) == 2
    assert "attention.segments=4" in capfd.readouterr().err
    assert main(["doctor", "data=somewhere", "attention.heads=3"]) == 2
    assert "attention.heads=3: has no effect with a dataset" in capfd.readouterr().err


def test_machine_has_no_settings(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "gpus=2"]) == 2
    assert "has no effect without a dataset" in capfd.readouterr().err
    assert main(["doctor", "--help"]) == 0
    assert "megavideo doctor --json" in capfd.readouterr().out


def test_ranks_share_the_packs(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "data=somewhere", "dp=3"]) == 2
    assert "take packs_per_step=9" in capfd.readouterr().err
    assert main(["doctor", "data=somewhere", "dp=4", "gpus=6"]) == 2
    assert "take gpus=8" in capfd.readouterr().err


def test_dataset_that_is_ready(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_dataset(str(tmp_path), 24)
    words = ["doctor", f"data={tmp_path}", "tokens_per_pack=64", "text_tokens_per_pack=512", "steps=20"]
    assert main(words) == 0
    out = capfd.readouterr().out
    assert "24: 16 videos" in out and "nothing found that would stop the run" in out
    assert main([*words, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["samples"] == 24


def test_faults_end_in_status_1(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_dataset(str(tmp_path), 24)
    shard = min(tmp_path.glob("shard.*.mds"))
    shard.write_bytes(shard.read_bytes()[:-1])
    words = ["doctor", f"data={tmp_path}", "tokens_per_pack=15", "text_tokens_per_pack=512", "steps=20"]
    assert main(words) == 1
    out = capfd.readouterr().out
    assert f"FAULT: {shard}" in out and "fit no pack, and max_dropped_share=0.01" in out
    assert main([*words, "--json"]) == 1
    report = json.loads(capfd.readouterr().out)
    assert len(report["faults"]) == 2 and report["shards"]["bad"][0]["name"] == shard.name


def test_a_folder_that_is_no_dataset_is_a_fault_of_input(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", f"data={tmp_path}"]) == 2
    assert "no dataset.json" in capfd.readouterr().err
