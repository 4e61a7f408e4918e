"""The contract of attention kernels, asked of every one that this machine can run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import Checks

from megavideo.model.attention.operator import Attention
from megavideo.parallel.attention.candidates import CANDIDATES, Candidate, Need
from megavideo.parallel.attention.machine_facts import MachineFacts
from tools.gpu_check.cases import Subject
from tools.gpu_check.contract import CONTRACT

NEED = Need(128, torch.bfloat16)


def check_kernel(checks: Checks, name: str, device: torch.device) -> None:
    """One kernel, unless something is missing of it; one whose package does not load has failed."""
    candidate = CANDIDATES[name]
    if not candidate.lacks(MachineFacts.of(device), NEED):
        _check_kernel(checks, candidate, device)


def _check_kernel(checks: Checks, candidate: Candidate, device: torch.device) -> None:
    loaded: list[Attention] = []

    def load() -> None:
        kernel = candidate.load()
        candidate.prepare(kernel, NEED, device)
        loaded.append(Attention(kernel))

    checks.run(f"attention {candidate.name}: loads", load)
    for attention in loaded:
        subject = Subject(attention, device, NEED.dtype)
        for name, check in CONTRACT.items():
            checks.run(f"attention {candidate.name}: {name}", _number(check, subject), 1.0)


def _number(check: Callable[[Subject], float | None], subject: Subject) -> Callable[[], float]:
    return lambda: check(subject) or 0.0
