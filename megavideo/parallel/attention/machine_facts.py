"""What of a machine decides which attention kernels it can run, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec

import torch

FA4, FA3, CUDNN, TE, TORCH = "flash-attn-4", "flash-attn-3", "nvidia-cudnn-frontend", "transformer-engine", "torch"
# of those that may be there without telling their version, the module that a look can find without importing it
_MODULES = {FA3: "flash_attn_3", TE: "transformer_engine", CUDNN: "cudnn"}


@dataclass(frozen=True)
class MachineFacts:
    """A device ("cpu" or "cuda"), its chip, and the packages found with their versions ("?" where none is told).

    `capability` is a GPU's compute capability, (9, 0) for Hopper. `cudnn` is the version of the cuDNN that torch has
    loaded, as 91900. Of `packages` torch is one only where it was built with flash attention 2 for GPUs.
    """

    device: str
    chip: str = "CPU"
    capability: tuple[int, int] = (0, 0)
    packages: Mapping[str, str] = field(default_factory=dict)
    cudnn: int = 0

    @classmethod
    def of(cls, device: torch.device) -> MachineFacts:
        """Look at this machine."""
        if device.type != "cuda":
            return cls(device.type, packages=_packages(), cudnn=torch.backends.cudnn.version() or 0)
        return cls(
            device.type,
            torch.cuda.get_device_name(device),
            torch.cuda.get_device_capability(device),
            _packages(),
            torch.backends.cudnn.version() or 0,
        )


def _packages() -> dict[str, str]:
    found = {name: _version(name) for name in (FA4, FA3, CUDNN, TE)}
    if torch.backends.cuda.is_flash_attention_available() and find_spec("torch.nn.attention.varlen") is not None:
        found[TORCH] = torch.__version__
    return {name: version for name, version in found.items() if version}


def _version(package: str) -> str:
    module = _MODULES.get(package)
    if module is not None and find_spec(module) is None:
        return ""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "?" if module is not None else ""
