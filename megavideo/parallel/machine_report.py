"""What `megavideo doctor` tells of a machine: its accelerated parts, and its attention kernels with their speed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megavideo.config.schema.doctor import AttentionTimes
from megavideo.parallel.attention.machine_facts import MachineFacts
from megavideo.parallel.attention.report import KernelReport, KernelSpeed, list_kernels, need_of, time_kernels
from megavideo.parallel.machine.accelerators import Gpu, Part, detect


@dataclass(frozen=True)
class MachineReport:
    """What a machine has. `cuda` is the CUDA version that torch was built for; without timing `speeds` is empty."""

    torch: str
    cuda: str | None
    gpus: tuple[Gpu, ...]
    parts: tuple[Part, ...]
    kernels: tuple[KernelReport, ...]
    speeds: tuple[KernelSpeed, ...] = ()


def report_machine(times: AttentionTimes) -> MachineReport:
    """Look at this machine, and time its attention kernels where `times` asks for it, or by default on a GPU."""
    # ahead of what else may import a kernel's package
    facts = MachineFacts.of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    need = need_of(times, facts)
    kernels = list_kernels(facts, need)
    wanted = facts.device == "cuda" if times.time is None else times.time
    speeds = time_kernels(facts, need, times) if wanted else ()
    found = detect()
    return MachineReport(found.torch, found.cuda, found.gpus, found.parts, kernels, speeds)
