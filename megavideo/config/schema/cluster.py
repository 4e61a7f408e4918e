"""Settings of `slurm-gen`: a cluster (group `cluster`), and what is to be run on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megavideo.config.schema.field import setting

ChipName = Literal["a100", "h100", "h200", "b200", "gb200", "gb300"]


@dataclass(frozen=True, kw_only=True)
class PrepareJob:
    """A job array of `ingest` or `encode`: `tasks` of one node each, which share the work.

    `gpus`, `cpus` and `memory` are a task's; `partition` null is the cluster's.
    """

    tasks: int = setting(16, minimum=1)
    gpus: int = setting(0, minimum=0)
    cpus: int = setting(8, minimum=1)
    memory: str | None = None
    time_limit: str = "1-00:00:00"
    partition: str | None = None


@dataclass(frozen=True, kw_only=True)
class ContainerConfig:
    """An image that every command runs in, by `apptainer`, or by `pyxis` (an option of srun) on enroot.

    `mounts` are folders of the host as `HOST:INSIDE`; the folder that jobs are submitted from is always one.
    """

    image: str | None = None
    runner: Literal["pyxis", "apptainer"] = "pyxis"
    mounts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What a job asks of Slurm, and what its processes find on a node; `name` is the file's.

    One task runs on each GPU; without GPUs `tasks_per_node` says how many run on a node. `memory` is a node's as Slurm
    writes it (`0`: all of it; null: the site's default), `time_limit` minutes or `D-HH:MM:SS`. `signal_seconds` before
    it a job is told to save and starts again. `requeue_limit` is how often in a row a job may start again without a
    newer checkpoint. `interface` is the network interface of rendezvous, gloo and NCCL's first contact; `environment`
    holds further variables, as NCCL's. `venv` is a virtual environment, `modules` are loaded before it. `scratch` is a
    folder on each node's own disk, in double quotes for the shell, for temporary files and the cache of a store.
    `preflight` checks every node before training. `lines` are further `#SBATCH` options, as `--constraint=h100`.

    `megavideo plan` alone reads the kind of GPU, `chip`, the bandwidth of each GPU to other nodes, `nic_gbit` in Gbit/s
    (null: what is usual beside the chip), and what a GPU costs an hour, `gpu_hour_price`.
    """

    name: str
    nodes: int = setting(minimum=1)
    gpus_per_node: int = setting(minimum=0)
    chip: ChipName | None = None
    nic_gbit: float | None = setting(None, above=0.0)
    gpu_hour_price: float | None = setting(None, minimum=0.0)
    tasks_per_node: int | None = setting(None, minimum=1)
    cpus_per_task: int = setting(minimum=1)
    threads: int = setting(1, minimum=1)
    memory: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    exclusive: bool = False
    time_limit: str = "1-00:00:00"
    signal_seconds: int = setting(600, minimum=1)
    requeue_limit: int = setting(3, minimum=0)
    lines: tuple[str, ...] = ()
    interface: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    venv: str | None = ".venv"
    container: ContainerConfig = field(default_factory=ContainerConfig)
    scratch: str | None = None
    preflight: bool = True
    ingest: PrepareJob = field(default_factory=PrepareJob)
    encode: PrepareJob = field(default_factory=PrepareJob)


@dataclass(frozen=True, kw_only=True)
class SlurmGenRun:
    """All settings of `slurm-gen`.

    `run` and `curriculum` are words of `megavideo train`, and `words` further ones, as `["optim.lr=1e-4"]`; each stage
    of the curriculum becomes a script, and `curriculum=none` one script for the whole run. `prompts` are sampled from
    the finished run. The scripts are written to the folder `out`; with `check` they are only compared.
    """

    cluster: ClusterConfig
    run: str = setting(remedy="VALUE is a preset of `megavideo train`, as wan_14b")
    curriculum: str = "none"
    words: tuple[str, ...] = ()
    prompts: tuple[str, ...]
    out: str
    check: bool = False
