"""Faults of a cluster, made on purpose: each is done to a job that trains, and is over after a while."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.data.fault_proxy import FaultProxy
from tests.slurm.lab import Job


@dataclass(frozen=True)
class Chaos:
    """Faults for one job. `proxy` stands before its store, `disk` is the file system of its run folder."""

    job: Job
    proxy: FaultProxy
    disk: Path
    draw: random.Random

    def kinds(self) -> dict[str, Callable[[], None]]:
        """Every fault by its name."""
        return {
            "rank killed": lambda: os.kill(self.rank(), signal.SIGKILL),
            "power cut": self.cut_power,
            "time limit": lambda: self.job.signal("USR1"),
            "terminated": lambda: os.kill(self.rank(), signal.SIGTERM),
            "rank stopped": lambda: os.kill(self.rank(), signal.SIGSTOP),
            "store down": self.take_store_down,
            "checkpoint damaged": self.damage_checkpoint,
            "disk full": self.fill_disk,
        }

    def rank(self) -> int:
        """The process of some rank."""
        return self.draw.choice(sorted(self.ranks()))

    def ranks(self) -> Iterator[int]:
        """Processes that train. The shells around them have the same words, and another program."""
        for node in self.nodes():
            for pid, environment in self.job.lab.cluster.processes(node):
                if environment.get("SLURM_JOB_ID") == self.job.id and "SLURM_PROCID" in environment:
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                    if b"python" in words[0] and b"train" in words:
                        yield pid

    def nodes(self) -> list[str]:
        """Nodes of the job."""
        return self.job.lab.cluster.call("scontrol", "show", "hostnames", self.job.facts()["NodeList"]).split()

    def cut_power(self) -> None:
        """A node goes, and is back when the job waits for its next start."""
        node, restarts = self.draw.choice(self.nodes()), self.job.facts()["Restarts"]
        self.job.lab.cluster.kill_node(node)
        self.job.wait_until(lambda: self.job.facts()["Restarts"] != restarts, 300)
        self.job.lab.cluster.start_node(node)

    def take_store_down(self) -> None:
        """Longer than the run waits for it, so that it ends and meets this at its next start, or not so long."""
        self.proxy.stop()
        time.sleep(self.draw.uniform(1.0, 12.0))
        self.proxy.start()

    def damage_checkpoint(self) -> None:
        """A bit of the newest checkpoint turns, and then the run must read it."""
        newest = max((self.job.folder / "checkpoints").glob("step_*"))
        file = max(newest.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        content[self.draw.randrange(len(content) // 2, len(content))] ^= 16
        file.write_bytes(content)
        os.kill(self.rank(), signal.SIGKILL)

    def fill_disk(self) -> None:
        """No space is left until a checkpoint could not be written, or the run ended for it."""
        failed, restarts = self.failed_saves(), self.job.facts()["Restarts"]
        filler = self.disk / "filler"
        try:
            with filler.open("wb") as file:
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
        except OSError as error:
            assert error.errno == errno.ENOSPC
        self.job.wait_until(lambda: self.failed_saves() > failed or self.job.facts()["Restarts"] != restarts)
        filler.unlink()

    def failed_saves(self) -> int:
        """Checkpoints that could not be written so far."""
        return self.job.said().count("NOT SAVED")
