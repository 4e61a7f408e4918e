"""The attention kernels of a machine for a reader: which are there, what is missing of the others, and their speed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from megavideo.config.schema.doctor import AttentionTimes
from megavideo.model.attention.operator import Attention
from megavideo.parallel.attention.candidates import CANDIDATES, Candidate, Need, in_order
from megavideo.parallel.attention.choose import attempt
from megavideo.parallel.attention.machine_facts import MachineFacts
from megavideo.parallel.attention.timing import Shape, Speed, time_kernel

_TOKENS = {"cpu": 1024, "cuda": 32768}
_FOR_TESTS = "stand_in"


@dataclass(frozen=True)
class KernelReport:
    """One kernel: the version found of its package (None without), what is missing ("" where it runs), how to have it.

    `taken` is set for the one that `layers.attention=auto` takes here.
    """

    name: str
    title: str
    version: str | None
    missing: str
    install: str
    taken: bool


@dataclass(frozen=True)
class KernelSpeed:
    """A kernel on packs of video that attend to themselves or to text; without numbers where it ran into a `fault`."""

    kernel: str
    attends: str
    speed: Speed | None
    fault: str = ""


def list_kernels(facts: MachineFacts, need: Need) -> tuple[KernelReport, ...]:
    """Every kernel but that of tests, the fastest of this chip first. Imports those packages that are there."""
    missing = {candidate.name: attempt(candidate, need, facts)[1] for candidate in _for_users(facts)}
    taken = next((candidate.name for candidate in in_order(facts) if not missing[candidate.name]), None)
    return tuple(
        KernelReport(
            candidate.name,
            candidate.title,
            candidate.version(facts) or None,
            missing[candidate.name],
            candidate.install if candidate.fits(facts, need) else "",
            candidate.name == taken,
        )
        for candidate in _for_users(facts)
    )


def time_kernels(facts: MachineFacts, need: Need, times: AttentionTimes) -> tuple[KernelSpeed, ...]:
    """Time every kernel that runs here on packs as `times` describes them."""
    device = torch.device(facts.device)
    return tuple(
        row for candidate in _for_users(facts) if not candidate.lacks(facts, need)
        for row in _timed(candidate, need, times, device)
    )  # fmt: skip


def need_of(times: AttentionTimes, facts: MachineFacts) -> Need:
    """Heads of the width that `times` asks for, in the precision of training there."""
    return Need(times.head_dim, torch.bfloat16 if facts.device == "cuda" else torch.float32)


def _for_users(facts: MachineFacts) -> list[Candidate]:
    first = in_order(facts)
    return [*first, *(c for c in CANDIDATES.values() if c not in first and c.name != _FOR_TESTS)]


def _timed(candidate: Candidate, need: Need, times: AttentionTimes, device: torch.device) -> Iterator[KernelSpeed]:
    tokens = times.tokens or _TOKENS[device.type]
    video, text = _share_out(tokens, times.segments), _share_out(times.text_tokens, times.segments)
    for attends, keys in (("self", video), ("text", text)):
        try:
            attention = Attention(candidate.load())
            candidate.prepare(attention.kernel, need, device)
            shape = Shape(video, keys, times.heads, need.head_dim)
            yield KernelSpeed(candidate.name, attends, time_kernel(attention, shape, need.dtype, device))
        except Exception as error:  # noqa: BLE001 - what a kernel runs into is what is to be found out
            first = next(iter(str(error).strip().splitlines()), "no message")
            yield KernelSpeed(candidate.name, attends, None, f"{type(error).__name__}: {first}")


def _share_out(tokens: int, segments: int) -> tuple[int, ...]:
    """`tokens` in segments that differ by one at most."""
    return tuple(tokens * (i + 1) // segments - tokens * i // segments for i in range(segments))
