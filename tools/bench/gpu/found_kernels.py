"""The attention kernels that this machine has."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from rows import Row, value_of

from megavideo.model.attention.operator import Attention
from megavideo.parallel.attention.candidates import Need, in_order
from megavideo.parallel.attention.choose import attempt, load_kernel
from megavideo.parallel.attention.machine_facts import MachineFacts

SDPA = "sdpa"
_NEED = Need(128, torch.bfloat16)


@cache
def kernels_here(device: torch.device) -> dict[str, Attention]:
    """Attention by the name of its kernel, for packs on `device`, fastest first; empty where there is none.

    What a kernel compiles it compiles in its first call.
    """
    facts = MachineFacts.of(device)
    found = {}
    for candidate in in_order(facts):
        kernel, _ = attempt(candidate, _NEED, facts, load_kernel)
        if kernel is not None:
            found[candidate.name] = Attention(kernel)
    return found


def missing_kernels(device: torch.device) -> dict[str, str]:
    """By the name of each kernel that fits the chip and does not run: why not."""
    facts = MachineFacts.of(device)
    reasons = {candidate.name: attempt(candidate, _NEED, facts, load_kernel)[1] for candidate in in_order(facts)}
    return {name: reason for name, reason in reasons.items() if reason}


def fastest(device: torch.device, rows: Iterable[Row], case: str) -> Attention | None:
    """The kernel that took the least time in `case` of part attention, else the first there is; None without any."""
    found = kernels_here(device)
    rows = list(rows)
    seconds = {
        name: value_of(rows, "forward_and_backward_ms", part="attention", case=case, name=name) for name in found
    }
    measured = {name: value for name, value in seconds.items() if value is not None}
    best = min(measured, key=lambda name: measured[name], default=next(iter(found), None))
    return None if best is None else found[best]
