"""Starting and ending the process group, alone, under torchrun or under srun."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from megavideo.errors import ConfigError, RanksMissing

DEFAULT_TIMEOUT = timedelta(minutes=10)
_STORE_TIMEOUT = timedelta(seconds=5)
_DEFAULT_PORT = 29_500


@dataclass(frozen=True)
class Launch:
    """This process among those started together."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device


def read_launch(environment: MutableMapping[str, str]) -> tuple[int, int, int]:
    """(rank, local rank, world size) from torchrun's variables, else srun's, else one process alone.

    Sets the variables of torchrun where srun started the process, since libraries read those. Those that sbatch
    found where the job was submitted are another start's: they count only where they tell of as many processes as srun.
    """
    tasks = environment.get("SLURM_NTASKS", "1")
    by_torchrun = "TORCHELASTIC_RUN_ID" in environment or environment.get("WORLD_SIZE") == tasks
    if "SLURM_PROCID" in environment and int(tasks) > 1 and not by_torchrun:
        environment["RANK"] = environment["SLURM_PROCID"]
        environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
        environment["WORLD_SIZE"] = environment["SLURM_NTASKS"]
        environment.setdefault("MASTER_ADDR", first_host(environment["SLURM_STEP_NODELIST"]))
        # jobs that share a node must not share a port
        environment.setdefault("MASTER_PORT", str(_DEFAULT_PORT + int(environment["SLURM_JOB_ID"]) % 1000))
    rank, world_size = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
    return rank, int(environment.get("LOCAL_RANK", "0")), world_size


def first_host(node_list: str) -> str:
    """First host of a Slurm node list: `gpu[07-09,12],x` -> `gpu07`."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", node_list)
    return node_list if match is None else f"{match[1]}{match[2] or ''}{match[3]}"


def check_precision(field: str, precision: str, device: torch.device) -> None:
    """Raise ConfigError for a precision that the device's attention kernel does not take."""
    if device.type == "cuda" and precision == "fp32":
        raise ConfigError(field, precision, "flash attention on a GPU takes bf16", f"set {field}=bf16")


def leave(status: int) -> NoReturn:
    """End the process now, with everything written out, and without the interpreter's teardown.

    Engines keep process groups alive past their destruction, and a gloo thread that is still joinable when they go
    aborts a process (SIGABRT) whose work is done.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def own_store(prefix: str) -> dist.Store | None:
    """A connection to the store in which the process group met, for one user: keys begin with `prefix`.

    None for a process alone. A call gives up after 5 s with a RuntimeError where a key is missing, and hangs where the
    machine of rank 0 does; calls over the group's own connection hold a lock while they wait.
    """
    if dist.get_world_size() == 1:
        return None
    own = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]  # torch's stub lacks it
    store = dist.PrefixStore(prefix, own)
    store.set_timeout(_STORE_TIMEOUT)
    return store


def _met(world_size: int) -> dist.Store:
    """The store that torchrun's variables name, once all ranks have come to it."""
    try:
        store: dist.Store = next(dist.rendezvous("env://", timeout=DEFAULT_TIMEOUT))[0]
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RanksMissing(
            f"the {world_size} ranks did not meet at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {reason} "
            "Remedy: `megavideo preflight`, started in the same way, names the nodes that are missing"
        ) from error
    return store


def _end_hung_collectives(environment: MutableMapping[str, str], timeout: timedelta) -> None:
    """Have torch end a process whose NCCL collective takes longer than the timeout, or whose CUDA calls hang in it.

    Names and meanings are those of ProcessGroupNCCL.hpp in torch 2.11; what the user has set stays.
    """
    environment.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3")  # end the process, without a call that may hang
    environment.setdefault("TORCH_NCCL_ENABLE_MONITORING", "1")  # and where the thread that would do so hangs itself
    environment.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(min(480, int(timeout.total_seconds()))))


@contextmanager
def process_group(timeout: timedelta = DEFAULT_TIMEOUT) -> Iterator[Launch]:
    """The process group for the duration of a block: nccl with GPUs, else gloo; always taken down at the end.

    `timeout` is how long a collective may take before it fails. Raises RanksMissing where not all ranks have come
    after ten minutes.
    """
    rank, local_rank, world_size = read_launch(os.environ)
    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if world_size == 1:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
        # at a store of its own: torchrun's, which this says to look for, does not listen at that port
        os.environ.update(MASTER_PORT=str(free_port()), TORCHELASTIC_USE_AGENT_STORE="False")
    device = torch.device("cuda", local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
        _end_hung_collectives(os.environ, timeout)
    dist.init_process_group(
        "nccl" if has_gpu else "gloo", store=_met(world_size), rank=rank, world_size=world_size, timeout=timeout
    )
    logging.getLogger(__name__).info("processes: %d, device: %s", world_size, device.type)
    try:
        yield Launch(rank, local_rank, world_size, device)
    finally:
        # left standing, gloo's threads can abort the process at exit
        dist.destroy_process_group()
