"""A real Slurm cluster on one machine: munged, slurmctld and a slurmd for each node, for the time of a `with` block.

A node has its own process table, host name, /dev/shm and /etc/hosts (Linux namespaces); the network and the other files
are shared. To kill its first process is a power cut: everything on the node is gone at once. All daemons die with the
process that made them, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare", "setpriv")
START_SECONDS = 60.0
CLIENT_SECONDS = 60.0  # clients try for minutes where slurmctld is gone
# Of the 107 bytes of a socket's name, as /spool/node12/node12_123456.4294967292 takes the others.
_LONGEST_FOLDER = 107 - 38
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

# The first process of a node stays, because orphans of a process table need one that reaps them.
_NODE = """
mount -t proc proc /proc && mount -t tmpfs -o mode=1777 tmpfs /dev/shm && mount --bind "$2" /etc/hosts \\
  && hostname "$1" || exit 97
slurmd -D -N "$1" &
while :; do wait; sleep 0.2; done
"""


@dataclass(frozen=True)
class Shape:
    """Nodes of a cluster, and what each pretends to have. Without `isolated` nodes are processes like any other."""

    nodes: int = 4
    gpus: int = 8
    cpus: int = 64
    memory_mib: int = 64_000
    isolated: bool = True


def missing_parts(isolated: bool = True) -> str | None:
    """What this machine lacks for a cluster, or None."""
    absent = [name for name in DAEMONS if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"no {', '.join(absent)}: run tools/slurm_cluster/install.sh"
    if os.geteuid() != 0:
        return "not root: slurmd starts jobs and makes namespaces as root only"
    probe = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "mount", "-t", "proc", "proc", "/proc"]
    if isolated and subprocess.run(probe, capture_output=True, timeout=CLIENT_SECONDS, check=False).returncode:
        return "namespaces are not permitted here"
    return None


class SlurmCluster:
    """The cluster of a `with` block, whose files are in `folder`. `environment` is what client commands need.

    Raises ValueError where the folder's name is too long for the sockets in it, without which no job ever starts.
    """

    def __init__(self, folder: Path, shape: Shape | None = None) -> None:
        self.folder = folder.resolve()
        if len(os.fsencode(self.folder)) > _LONGEST_FOLDER:
            raise ValueError(f"{self.folder}: longer than {_LONGEST_FOLDER} bytes. Remedy: take a shorter folder")
        self.shape = shape or Shape()
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def names(self) -> list[str]:
        """Names of the nodes: node1, node2, ..."""
        return [f"node{number}" for number in range(1, self.shape.nodes + 1)]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of this process without the variables of a Slurm job, and with SLURM_CONF."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        return kept | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _PATH}

    def __enter__(self) -> SlurmCluster:
        """Start every daemon. Raises RuntimeError with the end of the logs where they do not come up."""
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel all jobs and end every daemon."""
        self._stop()

    def call(
        self, *words: str | Path, extra: Mapping[str, str] | None = None, cwd: Path | None = None, check: bool = True
    ) -> str:
        """Standard output of a client command, as `call("squeue", "-h")`.

        Raises RuntimeError with its standard error where it fails, or does not answer in time.
        """
        command = [str(word) for word in words]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=CLIENT_SECONDS, check=False,
                env=self.environment | dict(extra or {}), cwd=cwd,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{command} did not answer in {CLIENT_SECONDS:g} s") from error
        if check and done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def kill_node(self, name: str) -> None:
        """A power cut: SIGKILL to every process of a node."""
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def start_node(self, name: str) -> None:
        """Bring a node up, which then reports to slurmctld."""
        command = ["slurmd", "-D", "-N", name]
        if self.shape.isolated:
            spaces = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
            command = ["unshare", *spaces, "bash", "-c", _NODE, "node", name, str(self.folder / "hosts")]
        self._daemons[name] = self._launch(name, command)

    def processes(self, name: str) -> Iterator[tuple[int, dict[str, str]]]:
        """Process ids and environments of all that runs on a node."""
        todo = [self._daemons[name].pid]
        while todo:
            pid = todo.pop()
            with contextlib.suppress(OSError):  # a process may end while it is looked at
                for children in Path(f"/proc/{pid}/task").glob("*/children"):
                    todo += [int(word) for word in children.read_text().split()]
                entries = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
                yield pid, dict(entry.split("=", 1) for entry in entries if "=" in entry)

    def _start(self) -> None:
        for part in ("log", "run", "state", "spool"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        (self.folder / "hosts").write_text("".join(f"127.0.0.1 {name}\n" for name in ("localhost", *self.names)))
        (self.folder / "slurm.conf").write_text(self._configuration(_free_ports(self.shape.nodes + 1)))
        (self.folder / "gres.conf").write_text(self._make_gpus())
        run, log = self.folder / "run", self.folder / "log"
        self._daemons["munged"] = self._launch(
            "munged",
            ["munged", "--force", "--foreground", f"--key-file={key}", f"--socket={run / 'munge'}",
             f"--pid-file={run / 'munged.pid'}", f"--log-file={log / 'munged.log'}", f"--seed-file={run / 'seed'}"],
        )  # fmt: skip
        self._wait_for(lambda: (run / "munge").exists(), "munged")
        self._daemons["slurmctld"] = self._launch("slurmctld", ["slurmctld", "-D"])
        for name in self.names:
            self.start_node(name)
        self._wait_for(self._all_idle, "slurmctld")

    def _make_gpus(self) -> str:
        """Devices that do nothing, because slurmd counts only what has a device file; and their lines for gres.conf."""
        place = self.folder / "gpu"
        place.mkdir(exist_ok=True)
        for number in range(self.shape.gpus):
            (place / str(number)).unlink(missing_ok=True)
            os.mknod(place / str(number), stat.S_IFCHR | 0o600, os.makedev(1, 3))  # as /dev/null
        return "".join(f"Name=gpu File={place / str(number)}\n" for number in range(self.shape.gpus))

    def _launch(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "log" / f"{name}.out").open("ab") as out:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.environment, start_new_session=True,
            )  # fmt: skip

    def _wait_for(self, ready: object, name: str) -> None:
        assert callable(ready)
        end = time.monotonic() + START_SECONDS
        while not ready():
            if self._daemons[name].poll() is not None or time.monotonic() > end:
                said = (self.folder / "log" / f"{name}.out").read_text()[-2000:]
                raise RuntimeError(f"the cluster did not come up; {name} says:\n{said}")
            time.sleep(0.1)

    def _all_idle(self) -> bool:
        found = self.call("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False).split()
        return len(found) == self.shape.nodes

    def _stop(self) -> None:
        if "slurmctld" in self._daemons and self._daemons["slurmctld"].poll() is None:
            with contextlib.suppress(RuntimeError):  # it may be the controller that is broken
                self.call("scancel", "--user", _user(), check=False)
        # the controller first: it waits for nodes that vanish before it
        for name in sorted(self._daemons, key=lambda name: name != "slurmctld"):
            daemon = self._daemons[name]
            daemon.kill()
            daemon.wait()
        self._daemons.clear()

    def _configuration(self, ports: list[int]) -> str:
        shape, place = self.shape, self.folder
        gpus = f" Gres=gpu:{shape.gpus}" if shape.gpus else ""
        nodes = "".join(
            f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={shape.cpus} "
            f"RealMemory={shape.memory_mib}{gpus} State=UNKNOWN\n"
            for name, port in zip(self.names, ports[1:], strict=True)
        )
        return _CONFIGURATION.format(place=place, user=_user(), port=ports[0]) + nodes


def _user() -> str:
    return subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


# Times are short, because a test waits for them: KillWait, SlurmdTimeout, and the scheduler's intervals.
_CONFIGURATION = """\
ClusterName=local
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={place}/run/munge,cred_expire=5
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool/%n
SlurmctldPidFile={place}/run/slurmctld.pid
SlurmdPidFile={place}/run/%n.pid
SlurmctldLogFile={place}/log/slurmctld.log
SlurmdLogFile={place}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={place}/log/completed.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=5
UnkillableStepTimeout=60
MinJobAge=86400
JobRequeue=1
MailProg=/bin/true
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
