"""What a rank can tell of its own node: free space, versions, and its GPU."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from megavideo.config.schema.preflight import PreflightLimits
from megavideo.observe.run_folder import code_version
from megavideo.parallel.machine.matmul_probe import MatmulProbe
from megavideo.preflight.findings import Finding

_SHARED_MEMORY = Path("/dev/shm")
_SMI_QUERY = "ecc.errors.uncorrected.volatile.total"
_SMI_SECONDS = 30


def check_disk(output: Path, cache: Path, limits: PreflightLimits) -> Finding:
    """Free space where run folders and shards go, and the size of shared memory that is free."""
    rows = (
        ("output", output, limits.output_gb),
        ("cache", cache, limits.cache_gb),
        ("shm", _SHARED_MEMORY, limits.shm_gb),
    )
    free = [(name, place, _free_gb(place), least) for name, place, least in rows]
    short = [f"{place} has {gb:.1f} GB free, {name} needs {least:g}" for name, place, gb, least in free if gb < least]
    text = "; ".join(short) or " ".join(f"{name} {gb:.0f}" for name, _, gb, _ in free) + " GB"
    return Finding("disk", not short, text)


def check_gpu(devices: Sequence[torch.device], limits: PreflightLimits) -> Finding:
    """As many GPUs as expected, the memory of `devices` free, and no uncorrected memory error on the node.

    The count is that of nvidia-smi, which sees GPUs that the launcher hides from the rank; without it, that of torch.
    """
    errors = _uncorrected_errors()
    count = torch.cuda.device_count() if errors is None else len(errors)
    faults = []
    if limits.gpus_per_node is not None and count != limits.gpus_per_node:
        faults.append(f"{count} GPUs, expected {limits.gpus_per_node}")
    for index, number in enumerate(errors or []):
        if number:
            faults.append(f"GPU {index} had {number} uncorrected memory errors since its driver was loaded")
    gpus = [device for device in devices if device.type == "cuda"]
    for device in gpus:
        free, total = torch.cuda.mem_get_info(device)
        if free < limits.gpu_free_share * total:
            taken = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
            faults.append(f"GPU {device.index} has {taken}: something else is on it")
    name = f"{count} x {torch.cuda.get_device_name(gpus[0])}" if gpus else "none"
    return Finding("gpu", not faults, "; ".join(faults) or name)


def check_matmul(devices: Sequence[torch.device]) -> Finding:
    """Whether each device multiplies right; measured are the seconds of the slowest."""
    seconds, wrong = [], []
    for device in devices:
        probe = MatmulProbe(device)
        seconds.append(probe.seconds(repeats=20))
        if not probe.is_right():
            wrong.append(f"{device}: a matrix product is wrong")
    return Finding("matmul", not wrong, "; ".join(wrong) or f"{max(seconds) * 1e3:.2f} ms", max(seconds))


def check_versions() -> Finding:
    """Measured is what must be equal on all nodes: code, interpreter, libraries, and CUDA as torch has it."""
    code = code_version(())
    cuda = {"cuda": torch.version.cuda, "nccl": _nccl()} if torch.cuda.is_available() else {}
    found = {"megavideo": code["megavideo"], "code": code["git_commit"], "python": platform.python_version()}
    found |= code["packages"] | cuda
    return Finding("versions", True, "ok", {name: str(value) for name, value in found.items() if value is not None})


def _nccl() -> str:
    return ".".join(map(str, torch.cuda.nccl.version()))


def _free_gb(place: Path) -> float:
    """Free space at a place, or where it would be made."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free / 1e9


def _uncorrected_errors() -> list[int] | None:
    """Uncorrected memory errors of each GPU of the node, 0 for one that does not count them; None without a tool."""
    command = ["nvidia-smi", f"--query-gpu={_SMI_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"nvidia-smi gave no answer in {_SMI_SECONDS} s") from error
    if done.returncode != 0:
        raise RuntimeError(f"nvidia-smi: {(done.stdout + done.stderr).strip()}")
    return [int(line) if line.strip().isdecimal() else 0 for line in done.stdout.splitlines() if line.strip()]
