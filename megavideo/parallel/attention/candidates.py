"""The attention kernels there are: on which chips each runs, what it needs, and in which order they are taken."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from megavideo.config.rules.precision import HEAD_MULTIPLE
from megavideo.model.attention.cpu_flash import CpuFlash
from megavideo.model.attention.kernel import Kernel
from megavideo.parallel.attention import cudnn, fa2, fa3, fa4, machine_facts, te
from megavideo.parallel.attention.machine_facts import MachineFacts
from megavideo.parallel.attention.stand_in import StandIn

# cuDNN before this gives NaN where a segment has no tokens, and nearly every pack has unused segments
_CUDNN = 92500
_ANY = 1 << 30


@dataclass(frozen=True)
class Need:
    """What a model asks of its attention: width of a head, and precision."""

    head_dim: int
    dtype: torch.dtype


def _nothing(kernel: Kernel, need: Need, device: torch.device) -> None:
    del kernel, need, device


@dataclass(frozen=True)
class Candidate:
    """One kernel and its needs.

    `widths` has the widest head by a GPU's major compute capability; without any it is a kernel for CPUs. `package` is
    what it comes with (pip's name), of exactly version `exact` or at least `least`; `install` says how it is had.
    `load` raises ImportError and the like where the package does not work. `prepare` runs once before training.
    """

    name: str
    title: str
    load: Callable[[], Kernel]
    widths: Mapping[int, int] = field(default_factory=dict)
    package: str = ""
    exact: str = ""
    least: str = ""
    cudnn: int = 0
    install: str = ""
    prepare: Callable[[Kernel, Need, torch.device], None] = _nothing

    def lacks(self, facts: MachineFacts, need: Need) -> str:
        """What keeps it from running there, as a clause; empty where nothing is known to."""
        if not self.widths:
            return "" if facts.device == "cpu" else "it computes on a CPU, and this process has a GPU"
        if facts.device != "cuda":
            return "it runs on NVIDIA GPUs, and this process has none"
        widest = self.widths.get(facts.capability[0], 0)
        if not widest:
            chips = ", ".join(f"{major}.x" for major in self.widths)
            have = ".".join(map(str, facts.capability))
            return f"it runs on compute capability {chips}, and {facts.chip} has {have}"
        return _misfit(need, widest) or self._lacks_package(facts)

    def fits(self, facts: MachineFacts, need: Need) -> bool:
        """Whether it would run there once everything is installed."""
        widest = self.widths.get(facts.capability[0], 0)
        return facts.device == "cuda" and widest > 0 and not _misfit(need, widest)

    def version(self, facts: MachineFacts) -> str:
        """The version found of what it comes with; empty without."""
        return facts.packages.get(self.package, "")

    def _lacks_package(self, facts: MachineFacts) -> str:
        found = self.version(facts)
        if not found:
            return f"{self.package} is not installed"
        if self.exact and found != self.exact:
            return f"{self.package} is {found}, and only {self.exact} is known to be called in the right way"
        if self.least and _numbers(found) < _numbers(self.least):
            return f"{self.package} is {found}, and {self.least} is the oldest that will do"
        if facts.cudnn < self.cudnn:
            return (
                f"cuDNN is {_cudnn(facts.cudnn)}, and before {_cudnn(self.cudnn)} it gives NaN where a segment has no "
                "tokens, as unused ones of a pack"
            )
        return ""


def _misfit(need: Need, widest: int) -> str:
    if need.dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in bf16, not {str(need.dtype).removeprefix('torch.')}"
    if need.head_dim % HEAD_MULTIPLE or need.head_dim > widest:
        return f"heads are {need.head_dim} wide, and it takes multiples of {HEAD_MULTIPLE} up to {widest}"
    return ""


def _warm_up_fa4(kernel: Kernel, need: Need, device: torch.device) -> None:
    assert isinstance(kernel, fa4.Fa4)
    fa4.warm_up(kernel, need.head_dim, need.dtype, device)


CANDIDATES: Mapping[str, Candidate] = {
    candidate.name: candidate
    for candidate in (
        Candidate("cpu", "torch's flash attention for CPUs", CpuFlash),
        Candidate("stand_in", "a stand-in for tests", StandIn),
        Candidate(
            "fa4", "flash attention 4", fa4.load, {9: 256, 10: 128}, machine_facts.FA4, exact=fa4.VERSION,
            install=f'pip install "flash-attn-4[cu13]=={fa4.VERSION}" (or without [cu13], for CUDA 12)',
            prepare=_warm_up_fa4,
        ),
        Candidate(
            "fa3", "flash attention 3", fa3.load, {9: 256}, machine_facts.FA3,
            install="build the folder hopper of the flash-attention repository",
        ),
        Candidate(
            "te", "cuDNN through Transformer Engine", te.load, {9: 128, 10: 128}, machine_facts.TE,
            least="2.20", cudnn=_CUDNN,
            install='pip install --no-build-isolation "megavideo[gpu]", and cuDNN 9.25 (nvidia-cudnn-cu13) after torch',
        ),
        Candidate(
            "cudnn", "cuDNN through its own package", cudnn.load, {9: 128, 10: 128}, machine_facts.CUDNN,
            least="1.32", cudnn=_CUDNN,
            install='pip install "nvidia-cudnn-frontend>=1.32", and cuDNN 9.25 (nvidia-cudnn-cu13) after torch',
        ),
        Candidate(
            "fa2", "flash attention 2, of torch", fa2.load, {8: 256, 9: 256, 10: 256, 11: 256, 12: 256},
            machine_facts.TORCH, install="install a torch that was built for CUDA",
        ),
    )
}  # fmt: skip

# the fastest first, by a GPU's major compute capability
_ORDER: Mapping[int, tuple[str, ...]] = {9: ("fa4", "fa3", "te", "cudnn", "fa2"), 10: ("fa4", "cudnn", "te", "fa2")}


def in_order(facts: MachineFacts) -> tuple[Candidate, ...]:
    """The kernels that `auto` considers on a machine, the fastest first."""
    names = ("cpu",) if facts.device == "cpu" else _ORDER.get(facts.capability[0], ("fa2",))
    return tuple(CANDIDATES[name] for name in names)


def _numbers(version: str) -> tuple[int, ...]:
    """The release of a version; one that is not told is as new as can be."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else (_ANY,)


def _cudnn(version: int) -> str:
    return f"{version // 10_000}.{version // 100 % 100}" if version else "missing"
