"""Jobs on a local Slurm cluster: submit, look, wait. A stand-in for `megavideo` is for what the script alone does."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.slurm_cluster.cluster import SlurmCluster

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
# four tasks, one a node; scripts are rendered for a larger cluster, and options of sbatch beat theirs
ON_FOUR = ("--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--mem=1G", "--time=30",
           "--signal=B:USR1@60")  # fmt: skip
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Job:
    """A job that was submitted. `folder` is its run's."""

    lab: Lab
    id: str
    folder: Path
    log: Path

    def facts(self) -> dict[str, str]:
        """What `scontrol show job` says of it."""
        words = self.lab.cluster.call("scontrol", "--oneliner", "show", "job", self.id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, seconds: float = 600.0) -> dict[str, str]:
        """Its facts once it has ended for good."""
        self.wait_until(lambda: self.facts()["JobState"] in ENDED, seconds)
        return self.facts()

    def wait_until(self, reached: Callable[[], object], seconds: float = 600.0) -> None:
        """Raises RuntimeError with the job's state and log where it does not come about."""
        try:
            self.lab.wait_until(reached, seconds)
        except TimeoutError as error:
            raise RuntimeError(f"job {self.id}: {error}; {self.facts()}\n{self.said()}") from error

    def wait_for_step(self, step: int, seconds: float = 600.0) -> None:
        """Wait until a step is in metrics.jsonl. Raises RuntimeError where the job ends before it."""

        def reached() -> bool:
            if self.steps()[-1:] >= [step]:
                return True
            if self.facts()["JobState"] in ENDED:
                raise RuntimeError(f"job {self.id} ended before step {step}\n{self.said()}")
            return False

        self.wait_until(reached, seconds)

    def signal(self, name: str) -> None:
        """Send a signal to the script, as Slurm does ahead of the time limit."""
        self.lab.cluster.call("scancel", "--batch", f"--signal={name}", self.id)

    def rows(self) -> list[dict[str, Any]]:
        """Its run's metrics, without a line that is just being written."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def steps(self) -> list[int]:
        """Steps in metrics.jsonl, as they stand there."""
        return [row["step"] for row in self.rows()]

    def record(self) -> str:
        """What the script wrote of its starts into the run folder."""
        path = self.folder / "slurm" / "jobs.log"
        return path.read_text() if path.exists() else ""

    def said(self) -> str:
        """Its log."""
        return self.log.read_text() if self.log.exists() else ""


@dataclass(frozen=True)
class Lab:
    """A cluster, the checkout whose scripts run on it, and a folder for runs and logs."""

    cluster: SlurmCluster
    checkout: Path
    root: Path

    def submit(
        self,
        script: str | Path,
        name: str,
        words: Sequence[str] = (),
        *,
        options: Sequence[str] = ON_FOUR,
        environment: Mapping[str, str] | None = None,
    ) -> Job:
        """Submit a script from the root of the checkout, for the run `name`."""
        log = self.root / f"{name}-{Path(script).stem}.log"
        given = self.environment(name) | dict(environment or {})
        said = self.cluster.call(
            "sbatch", "--parsable", f"--output={log}", *options, script, *words, extra=given, cwd=self.checkout
        )
        return Job(self, said.strip(), self.root / "runs" / name, log)

    def wait_until(self, reached: Callable[[], object], seconds: float) -> None:
        """Look until it is so. Raises TimeoutError where it does not come about."""
        end = time.monotonic() + seconds
        while not reached():
            if time.monotonic() > end:
                raise TimeoutError(f"not there in {seconds:g} s")
            time.sleep(_POLL_SECONDS)

    def environment(self, name: str) -> dict[str, str]:
        """Variables of the scripts for the run `name`, with this Python."""
        return {"MEGAVIDEO_RUN": name, "MEGAVIDEO_OUTPUT": str(self.root / "runs"), "MEGAVIDEO_VENV": sys.prefix}

    def stand_in(self, name: str, script: str) -> dict[str, str]:
        """The environment in which `megavideo` is a shell script, which finds the run folder as $folder."""
        place = self.root / f"{name}-venv" / "bin"
        place.mkdir(parents=True)
        (place / "activate").write_text(f'PATH="{place}:$PATH"\n')
        program = place / "megavideo"
        folder = self.root / "runs" / name
        program.write_text(f"#!/bin/bash\nverb=$1 folder={folder} start=${{SLURM_RESTART_COUNT:-0}}\n{script}\n")
        program.chmod(0o755)
        return {"MEGAVIDEO_VENV": str(place.parent)}
