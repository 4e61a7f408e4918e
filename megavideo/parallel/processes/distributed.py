"""Starting and ending the process group, alone, under torchrun or under srun."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from megavideo.config.layout import Layout
from megavideo.errors import ConfigError, RanksMissing
from megavideo.parallel.processes.environment import chip_generation, gpu_environment
from megavideo.parallel.processes.forked import stay_on_this_machine

DEFAULT_TIMEOUT = timedelta(minutes=10)
_STORE_TIMEOUT = timedelta(seconds=5)
_DEFAULT_PORT = 29_500
_LATE_SECONDS = 2.0  # torch tells of the ranks that are missing, if it does, right after the limit


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


def _met(world_size: int, limit: timedelta) -> dist.Store:
    """The store that torchrun's variables name, once all ranks have come to it; RanksMissing after the limit.

    In a thread, which is left behind: a client whose server is gone goes on for two times its own limit and more.
    """
    stores: list[dist.Store] = []
    errors: list[Exception] = []

    def meet() -> None:
        try:
            stores.append(next(dist.rendezvous("env://", timeout=limit))[0])
        except Exception as error:  # noqa: BLE001 - told by the thread that waits for this one
            errors.append(error)

    thread = threading.Thread(target=meet, name="megavideo-meeting", daemon=True)
    thread.start()
    thread.join(limit.total_seconds() + _LATE_SECONDS)
    if stores:
        return stores[0]
    if not errors:
        raise _missing(world_size, f"nothing answered for {limit.total_seconds():.0f} s.")
    if not isinstance(errors[0], RuntimeError):
        raise errors[0]
    raise _missing(world_size, (str(errors[0]).splitlines() or [type(errors[0]).__name__])[0]) from errors[0]


def _missing(world_size: int, reason: str) -> RanksMissing:
    return RanksMissing(
        f"the {world_size} ranks did not meet at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {reason} "
        "Remedy: `megavideo preflight`, started in the same way, names the nodes that are missing"
    )


def own_device(local_rank: int) -> torch.device:
    """The GPU of a process that is the `local_rank`th on its machine; the CPU where there is none."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def machine_devices() -> list[torch.device]:
    """Every GPU that this process sees; the CPU where it sees none."""
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [torch.device("cpu")]


def call_all_ranks(device: torch.device) -> None:
    """Make one call over the default group, of all its ranks, and wait for it.

    NCCL makes a communicator in a group's first call, which must be one of all ranks: where it is an exchange of some,
    as of neighbours in a pipeline, they wait for the others without an end.
    """
    total = torch.zeros(1, device=device)
    with torch.cuda.device_of(total):  # a thread begins on the first GPU
        dist.all_reduce(total)
    float(total)  # on a GPU the call itself returns before its end


@contextmanager
def process_group(
    timeout: timedelta = DEFAULT_TIMEOUT, layouts: Iterable[Layout] = (), meeting: timedelta = DEFAULT_TIMEOUT
) -> Iterator[Launch]:
    """The process group for the duration of a block: nccl with GPUs, else gloo; always taken down at the end.

    `timeout` is how long a collective may take before it fails. `layouts` are those that this process will train under,
    one after another: the environment of its GPU follows from them (`gpu_environment`). Raises RanksMissing where not
    all ranks have come when the time for `meeting`, ten minutes, is over, and where their launcher ends while they come
    together.

    The group is not bound to its device. That would make its communicator at once, but also each group made later a
    split of it: a collective of all ranks for every group of a mesh, also for those of others and of one rank (1,060
    for 1,024 ranks), where each group's own ranks else make it in its first call. And sends between pipeline stages
    would share one stream with all else of the default group, in place of one for each pair.
    """
    rank, local_rank, world_size = read_launch(os.environ)
    communicate = any(layout.tp > 1 or layout.cp > 1 for layout in layouts)
    # ahead of the first CUDA call, which may read them
    variables = gpu_environment(os.environ, chip_generation(), communicate, timeout)
    os.environ.update(variables)
    device = own_device(local_rank)
    has_gpu = device.type == "cuda"
    if has_gpu:
        torch.cuda.set_device(device)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if world_size == 1:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
        # at a store of its own: torchrun's, which this says to look for, does not listen at that port
        os.environ.update(MASTER_PORT=str(free_port()), TORCHELASTIC_USE_AGENT_STORE="False")
        stay_on_this_machine(os.environ)
    store = _met(world_size, meeting)
    try:
        dist.init_process_group(
            "nccl" if has_gpu else "gloo", store=store, rank=rank, world_size=world_size, timeout=timeout
        )
    except dist.DistError as error:  # the store went away with whoever keeps it
        raise _missing(world_size, (str(error).splitlines() or [type(error).__name__])[0]) from error
    log = logging.getLogger(__name__)
    log.info("processes: %d, device: %s", world_size, device.type)
    log.info("environment: %s", " ".join(f"{name}={value}" for name, value in sorted(variables.items())))
    try:
        call_all_ranks(device)
        yield Launch(rank, local_rank, world_size, device)
    finally:
        # left standing, gloo's threads can abort the process at exit
        dist.destroy_process_group()
