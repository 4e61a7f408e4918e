"""What each job asks of Slurm: the options after `#SBATCH`, as `--nodes=4`."""

from __future__ import annotations

from megavideo.config.schema.cluster import ClusterConfig, PrepareJob

_EARLY_SECONDS = 60  # a signal may come so much earlier than asked, never later


def processes(cluster: ClusterConfig) -> int:
    """Ranks of a training job: one for each GPU, or `tasks_per_node` on each node without."""
    return cluster.nodes * tasks_per_node(cluster)


def tasks_per_node(cluster: ClusterConfig) -> int:
    """Ranks on one node."""
    return cluster.tasks_per_node or cluster.gpus_per_node


def grace_seconds(cluster: ClusterConfig) -> int:
    """How long ranks may take to save after the signal, with time left to ask for another start."""
    return max(1, cluster.signal_seconds - min(_EARLY_SECONDS, cluster.signal_seconds // 4))


def train_directives(cluster: ClusterConfig, job_name: str, logs: str) -> list[str]:
    """Of a job that trains on all nodes. The signal goes to the script alone, which hands it on to the ranks."""
    lines = [
        *_common(cluster, job_name, f"{logs}/%x-%j.log"),
        f"--nodes={cluster.nodes}",
        f"--ntasks-per-node={tasks_per_node(cluster)}",
        *([f"--gpus-per-node={cluster.gpus_per_node}"] if cluster.gpus_per_node else []),
        f"--cpus-per-task={cluster.cpus_per_task}",
        *([f"--mem={cluster.memory}"] if cluster.memory is not None else []),
        *(["--exclusive"] if cluster.exclusive else []),
        f"--time={cluster.time_limit}",
        f"--signal=B:USR1@{cluster.signal_seconds}",
        *_partition(cluster.partition),
    ]
    return [*lines, *cluster.lines]


def prepare_directives(cluster: ClusterConfig, job: PrepareJob, job_name: str, logs: str) -> list[str]:
    """Of an array of jobs that share the work of one command."""
    lines = [
        *_common(cluster, job_name, f"{logs}/%x-%A_%a.log"),
        f"--array=0-{job.tasks - 1}",
        "--nodes=1",
        "--ntasks=1",
        *([f"--gpus-per-node={job.gpus}"] if job.gpus else []),
        f"--cpus-per-task={job.cpus}",
        *([f"--mem={job.memory}"] if job.memory is not None else []),
        f"--time={job.time_limit}",
        *_partition(job.partition or cluster.partition),
    ]
    return [*lines, *cluster.lines]


def alone_directives(cluster: ClusterConfig, job_name: str, logs: str, *, gpus: int) -> list[str]:
    """Of a job of one process, on `gpus` GPUs where the cluster has any."""
    lines = [
        *_common(cluster, job_name, f"{logs}/%x-%j.log"),
        "--nodes=1",
        "--ntasks=1",
        *([f"--gpus-per-node={gpus}"] if gpus and cluster.gpus_per_node else []),
        f"--cpus-per-task={cluster.cpus_per_task}",
        f"--time={cluster.time_limit}",
        *_partition(cluster.partition),
    ]
    return [*lines, *cluster.lines]


def _common(cluster: ClusterConfig, job_name: str, log: str) -> list[str]:
    """Of every job. `append`: a job that starts again would empty its log; a dependency that cannot come true ends."""
    return [
        f"--job-name={job_name}",
        f"--output={log}",
        "--open-mode=append",
        "--requeue",
        "--kill-on-invalid-dep=yes",
        *([f"--account={cluster.account}"] if cluster.account is not None else []),
        *([f"--qos={cluster.qos}"] if cluster.qos is not None else []),
    ]


def _partition(name: str | None) -> list[str]:
    return [] if name is None else [f"--partition={name}"]
