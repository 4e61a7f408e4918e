"""The choice of the attention kernel: the only place that asks which device and which libraries there are."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megavideo.errors import ConfigError
from megavideo.model.attention.kernel import Kernel
from megavideo.model.attention.operator import Attention
from megavideo.parallel.attention.candidates import CANDIDATES, Candidate, Need, in_order
from megavideo.parallel.attention.machine_facts import MachineFacts

FIELD = "layers.attention"
_SLOW = "fa2"
_BROKEN = (ImportError, OSError, RuntimeError, AttributeError, AssertionError)
Load = Callable[[Candidate], Kernel]


@dataclass(frozen=True)
class Choice:
    """A kernel that runs here, with the version of its package; `passed_over` says why faster ones do not, by name.

    `warning` is for the user, where the kernel is much slower than the chip; else it is empty.
    """

    candidate: Candidate
    kernel: Kernel
    version: str
    passed_over: tuple[tuple[str, str], ...]
    warning: str


def load_kernel(candidate: Candidate) -> Kernel:
    """Import what it comes with."""
    return candidate.load()


def choose(setting: str, need: Need, facts: MachineFacts, load: Load = load_kernel, field: str = FIELD) -> Choice:
    """The kernel that `setting` names, or with `auto` the fastest that a machine has.

    Raises ConfigError, which calls the setting `field`, where it cannot run, or none can.
    """
    candidates = in_order(facts) if setting == "auto" else (CANDIDATES[setting],)
    reasons: list[tuple[str, str]] = []
    for candidate in candidates:
        kernel, reason = attempt(candidate, need, facts, load)
        if kernel is not None:
            warning = _slow(facts, reasons, field) if candidate.name == _SLOW and facts.capability >= (9, 0) else ""
            return Choice(candidate, kernel, candidate.version(facts), tuple(reasons), warning)
        reasons.append((candidate.name, reason))
    if setting == "auto":
        raise ConfigError(
            field, setting, f"no attention kernel runs here: {_listed(reasons)}", _installs(candidates, field)
        )
    others = [c.name for c in in_order(facts) if c.name != setting and not c.lacks(facts, need)]
    take = f"take {field}={others[0]}, or auto" if others else "nothing else runs here either"
    remedy = f"{CANDIDATES[setting].install}; or {take}" if CANDIDATES[setting].fits(facts, need) else take
    raise ConfigError(field, setting, reasons[0][1], remedy)


def choose_attention(setting: str, need: Need, device: torch.device, field: str = FIELD) -> Attention:
    """The attention of this process, ready to run, and one line in the log that says which.

    A collective call of all processes, where there is a process group. Raises ConfigError where the kernel cannot run,
    on all of them alike, or where they would run different ones.
    """
    facts = MachineFacts.of(device)
    choice, fault = None, None
    try:
        choice = choose(setting, need, facts, field=field)
    except ConfigError as error:
        fault = error
    _agree(field, setting, "" if choice is None else choice.candidate.name, fault)
    assert choice is not None, "without a choice there is a fault, which has been raised"
    log = logging.getLogger(__name__)
    version = f" {choice.version}" if choice.version else ""
    log.info("attention: %s (%s%s) on %s", choice.candidate.name, choice.candidate.title, version, facts.chip)
    if choice.warning:
        log.warning("%s", choice.warning)
    choice.candidate.prepare(choice.kernel, need, device)
    return Attention(choice.kernel)


def disagreement(found: Sequence[tuple[str, str]]) -> str:
    """Which hosts take which kernel, where (host, kernel) of all processes differ; empty where they agree."""
    hosts: dict[str, list[str]] = {}
    for host, name in found:
        if host not in hosts.setdefault(name or "none", []):
            hosts[name or "none"].append(host)
    if len(hosts) < 2:
        return ""
    # the fewest first: those are the ones to mend
    parts = [f"{name} on {', '.join(some)}" for name, some in sorted(hosts.items(), key=lambda item: len(item[1]))]
    return "; ".join(parts)


def _agree(field: str, setting: str, name: str, fault: ConfigError | None) -> None:
    """Raise this process's fault, or one of all where they would not run the same kernel."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        found: list[tuple[str, str]] = [("", "")] * dist.get_world_size()
        dist.all_gather_object(found, (socket.gethostname(), name))
        if told := disagreement(found):
            remedy = f"install the same packages on every node, or name a kernel that all have, as {field}=fa2"
            raise ConfigError(field, setting, f"processes would run different kernels: {told}", remedy) from fault
    if fault is not None:
        raise fault


def attempt(
    candidate: Candidate, need: Need, facts: MachineFacts, load: Load = load_kernel
) -> tuple[Kernel | None, str]:
    """The kernel and nothing, or none and what it lacks."""
    if reason := candidate.lacks(facts, need):
        return None, reason
    try:
        return load(candidate), ""
    except _BROKEN as error:
        first = next(iter(str(error).strip().splitlines()), "no message")
        return None, f"{candidate.package or candidate.name} does not load: {type(error).__name__}: {first}"


def _slow(facts: MachineFacts, reasons: Sequence[tuple[str, str]], field: str) -> str:
    """What flash attention 2 costs on a chip of today, and what would be faster there."""
    told = (
        f"SLOW ATTENTION: {facts.chip} runs flash attention 2, which was made for older chips. On an H100 it computes "
        "370 TFLOP/s forward where newer kernels compute 600 to 650, and a step at 32k tokens takes 1.6 times as long. "
    )
    if reasons:
        return told + f"{in_order(facts)[0].install}. What is missing of each: {_listed(reasons)}."
    if len(in_order(facts)) > 1:
        return told + f"It was asked for by name: {field}=auto takes the fastest that is there."
    return told + "No other is known to run on this chip."


def _listed(reasons: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons)


def _installs(candidates: Sequence[Candidate], field: str) -> str:
    return "; or ".join(candidate.install for candidate in candidates if candidate.install) or f"take {field}=cpu"
