"""Starting `python -m MODULE` on one or several processes of this machine's CPU, with a limit on their time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from megavideo.parallel.processes.distributed import free_port

_ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT_SECONDS = 150.0
_POLL_SECONDS = 0.002


@dataclass(frozen=True)
class Finished:
    """How a command ended: its exit status, and all that its processes wrote."""

    status: int
    out: str
    err: str


class Launched:
    """A started command, used in a `with` block, at whose end nothing of it is left running."""

    def __init__(self, module: str, words: Sequence[str], logs: Path, *, processes: int = 1) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = (logs / "out.txt", logs / "err.txt")
        torchrun = [
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(processes),
            "--master-port",
            str(free_port()),
        ]
        command = [sys.executable, *(torchrun if processes > 1 else []), "-m", module, *words]
        environment = {name: value for name, value in os.environ.items() if name not in _LAUNCH_VARIABLES}
        environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        with self._logs[0].open("w") as out, self._logs[1].open("w") as err:
            self._process = subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=out, stderr=err)

    def __enter__(self) -> Launched:
        """Return the launch itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what still runs."""
        if self._process.poll() is None:
            workers = psutil.Process(self._process.pid).children(recursive=True)
            self._process.kill()
            self._process.wait()
            for worker in workers:
                if worker.is_running():
                    worker.kill()

    def send_signal(self, number: int) -> None:
        """Send a signal to the command itself: torchrun, where several processes run."""
        self._process.send_signal(number)

    def kill_rank(self, rank: int) -> None:
        """Send SIGKILL to one rank, as `kill -9` does."""
        self.signal_rank(rank, signal.SIGKILL)

    def signal_rank(self, rank: int, number: int) -> None:
        """Send a signal to one rank."""
        for worker in psutil.Process(self._process.pid).children():
            if worker.environ().get("RANK") == str(rank):
                worker.send_signal(number)
                return
        raise RuntimeError(f"rank {rank} is not running\n{self._logs[1].read_text()}")

    def wait_for_lines(self, path: Path, count: int) -> None:
        """Wait until a file has so many lines. Raises RuntimeError where the command ends before that."""
        end = time.monotonic() + _TIMEOUT_SECONDS
        while not path.exists() or path.read_bytes().count(b"\n") < count:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{path} never had {count} lines\n{self._logs[1].read_text()}")
            time.sleep(_POLL_SECONDS)

    def finish(self) -> Finished:
        """Wait for the end. Raises RuntimeError where it does not come."""
        try:
            status = self._process.wait(_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"not done in {_TIMEOUT_SECONDS} s\n{self._logs[1].read_text()}") from error
        return Finished(status, *(path.read_text() for path in self._logs))


def run(module: str, words: Sequence[str], logs: Path, *, processes: int = 1) -> Finished:
    """Start a command and wait for its end."""
    with Launched(module, words, logs, processes=processes) as launched:
        return launched.finish()


_LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
