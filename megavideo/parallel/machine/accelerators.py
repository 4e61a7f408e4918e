"""Which accelerated parts this machine has, what runs in place of a missing one, and refusals of what it cannot run.

Nothing here imports Transformer Engine or megatron-core on a machine without GPU: importing them is slow there, and
what they would be asked is known beforehand.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

from megavideo.config.schema.precision import LayersConfig
from megavideo.errors import ConfigError

_TE, _TE_PACKAGE = "layers.engine", "transformer_engine"
_INSTALL = "install the extra megavideo[gpu] (pip install --no-build-isolation), or take layers=local"
# the question that Transformer Engine answers for each kind of scaling
_QUESTIONS: Mapping[str, str] = {
    "current": "is_fp8_available",
    "delayed": "is_fp8_available",
    "block": "is_fp8_block_scaling_available",
    "mxfp8": "is_mxfp8_available",
}


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, compute capability (as 9.0) and memory in GiB."""

    name: str
    capability: str
    memory_gib: float


@dataclass(frozen=True)
class Part:
    """An accelerated part: whether it can run here, its version or what it lacks, and what runs where it is missing."""

    name: str
    available: bool
    detail: str
    instead: str


@dataclass(frozen=True)
class Accelerators:
    """What a machine has. `cuda` is the CUDA version that torch was built for."""

    torch: str
    cuda: str | None
    gpus: tuple[Gpu, ...]
    parts: tuple[Part, ...]


def detect() -> Accelerators:
    """Look at this machine."""
    return Accelerators(torch.__version__, torch.version.cuda, _gpus(), tuple(_parts()))


def check_layers(config: LayersConfig, device: torch.device) -> None:
    """Raise ConfigError where the layers that `config` asks for cannot run on `device`; nothing is replaced silently.

    The message says what is missing: the GPU, Transformer Engine, or a chip with the asked number format.
    """
    if config.engine == "local":
        return
    if device.type != "cuda":
        rule = "Transformer Engine runs on NVIDIA GPUs, and this process has none"
        raise ConfigError(_TE, config.engine, rule, "take layers=local, or start where torch sees a GPU")
    te, missing = load_te()
    if te is None:
        raise ConfigError(_TE, config.engine, f"Transformer Engine cannot be loaded: {missing}", _INSTALL)
    if config.fp8 != "none":
        possible, reason = getattr(te, _QUESTIONS[config.fp8])(return_reason=True)
        if not possible:
            chip = torch.cuda.get_device_name(device)
            rule = f"{chip} cannot run it: {reason.rstrip('.')}"
            remedy = "take layers.fp8=none" if config.fp8 == "current" else "take layers.fp8=current, or none"
            raise ConfigError("layers.fp8", config.fp8, rule, remedy)


def load_te() -> tuple[Any, str]:
    """(transformer_engine.pytorch, "") where there is a GPU and it loads; else (None, what is missing)."""
    if not torch.cuda.is_available():
        return None, "no NVIDIA GPU, without which its layers cannot be made"
    if find_spec(_TE_PACKAGE) is None:
        return None, "transformer_engine is not installed"
    try:
        # after torch, which brings NCCL and cuBLAS into the process
        import transformer_engine.pytorch as te
    except (ImportError, OSError, RuntimeError, AssertionError) as error:
        return None, f"{type(error).__name__}: {_first_line(error)}"
    return te, ""


def _gpus() -> tuple[Gpu, ...]:
    if not torch.cuda.is_available():
        return ()
    every = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return tuple(Gpu(p.name, f"{p.major}.{p.minor}", round(p.total_memory / 2**30, 1)) for p in every)


def _parts() -> list[Part]:
    return [
        *_te_parts(),
        _apex(),
        _fused_adamw(),
        _cpu_adam(),
        *_communication(),
    ]


def _te_parts() -> list[Part]:
    te, missing = load_te()
    version = _version("transformer-engine")
    detail = str(version) if te is not None else missing + (f" (version {version} is installed)" if version else "")
    parts = [Part("Transformer Engine", te is not None, detail, "linear layers of torch and megatron-core")]
    kinds = {"FP8 (current, delayed)": "current", "FP8 (block)": "block", "FP8 (mxfp8)": "mxfp8"}
    for name, kind in kinds.items():
        possible, reason = (False, "needs Transformer Engine") if te is None else _ask(te, _QUESTIONS[kind])
        parts.append(
            Part(name, possible, reason or "on this chip", "nothing: a run that asks for it is refused; take bf16")
        )
    return parts


def _ask(te: Any, question: str) -> tuple[bool, str]:
    possible, reason = getattr(te, question)(return_reason=True)
    return bool(possible), str(reason)


def _apex() -> Part:
    # by its extension: the registry's package of the name apex is another thing
    found = find_spec("amp_C") is not None
    detail = "amp_C" if found else "amp_C is not installed"
    return Part("NVIDIA apex", found, detail, "torch's fused AdamW and norms; nothing here needs apex")


def _fused_adamw() -> Part:
    from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

    devices = _get_fused_kernels_supported_devices()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Part("fused AdamW (torch)", device in devices, f"on {device}", "nothing: training needs it")


def _cpu_adam() -> Part:
    version, compiler = _version("deepspeed"), shutil.which("c++") or shutil.which("g++")
    lacks = [name for name, there in (("deepspeed", version), ("a C++ compiler", compiler)) if not there]
    detail = f"lacks {' and '.join(lacks)}" if lacks else f"deepspeed {version}, compiled at its first use"
    return Part("CPU Adam (DeepSpeed)", not lacks, detail, "no offload of optimizer states")


def _communication() -> list[Part]:
    from torch import distributed

    nccl = distributed.is_nccl_available() and torch.cuda.is_available()
    detail = ".".join(map(str, torch.cuda.nccl.version())) if nccl else "no NVIDIA GPU, or torch was built without it"
    gloo = distributed.is_gloo_available()
    return [
        Part("NCCL", nccl, detail, "gloo"),
        Part("gloo", gloo, "in torch" if gloo else "torch was built without it", "one process only"),
    ]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
