"""Part 1: what the machine is."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata

import torch
from found_kernels import kernels_here, missing_kernels
from rows import Row, Value
from session import Session

from megavideo.parallel.machine.accelerators import detect
from megavideo.train.health.peak import peak_flops_per_second

PACKAGES = (
    "torch", "triton", "numpy", "deepspeed", "megatron-core", "transformer-engine", "diffusers", "transformers",
    "flash-attn-4", "flash-attn-3", "nvidia-cudnn-frontend", "nvidia-cudnn-cu13", "nvidia-cutlass-dsl",
    "quack-kernels", "nvidia-nccl-cu13", "einops", "hydra-core",
)  # fmt: skip
_ASKED = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")


def measure(session: Session) -> Iterator[Row]:
    """Host, device, torch, packages and clocks."""
    yield from session.guarded("machine", ["host", "device"], lambda: _machine(session))
    yield from session.guarded("packages", ["found"], lambda: _packages(session))
    yield from session.guarded("parts", ["accelerated"], lambda: _parts(session))
    if session.device.type == "cuda":
        yield from session.guarded("nvidia-smi", ["clocks"], lambda: _clocks(session))
    else:
        yield session.skipped("nvidia-smi", "clocks", "no NVIDIA GPU")


def _machine(session: Session) -> Iterator[Row]:
    host = {"python": platform.python_version(), "processors": os.cpu_count(), "torch_threads": torch.get_num_threads()}
    yield session.row("machine", "host", host)
    peak = peak_flops_per_second(session.device, torch.bfloat16, None)
    values: dict[str, Value | None] = {
        "kind": session.device.type,
        "peak_tflops": None if peak is None else peak / 1e12,
    }
    if session.device.type == "cuda":
        facts = torch.cuda.get_device_properties(session.device)
        values |= {
            "name": facts.name,
            "capability": f"{facts.major}.{facts.minor}",
            "memory_gib": facts.total_memory / 2**30,
            "multiprocessors": facts.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    yield session.row("machine", "device", values)


def _packages(session: Session) -> Iterator[Row]:
    versions: dict[str, Value | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not found"
    yield session.row("packages", "found", versions)
    kernels = ", ".join(kernels_here(session.device))
    yield session.row("packages", "attention kernels", {"found": kernels or "none", **missing_kernels(session.device)})


def _parts(session: Session) -> Iterator[Row]:
    for part in detect().parts:
        found = asdict(part)
        yield session.row("parts", found.pop("name"), {key: str(value) for key, value in found.items()})


def _clocks(session: Session) -> Iterator[Row]:
    words = ["nvidia-smi", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader", "-i", "0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    answers = [answer.strip() for answer in done.stdout.strip().split(",")]
    yield session.row("nvidia-smi", "clocks", dict(zip(_ASKED, answers, strict=True)))
