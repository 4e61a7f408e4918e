"""A job whose run is in use waits for the job that holds it; by its script, with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from megavideo.config.load import load
from megavideo.config.schema.cluster import SlurmGenRun
from megavideo.errors import RETRY_STATUS
from megavideo.launch.render import render_scripts
from megavideo.launch.stages import load_stages
from megavideo.observe.owner import OWNER_FOLDER, this_process

_WORDS = ["cluster=laptop_test", "cluster.nodes=2", "cluster.venv=null", "run=micro", "curriculum=none"]
_COMMANDS = {
    "srun": 'while [[ $1 != task ]]; do shift; done; echo "75 0 node1" >>"$2"; exit 75',
    "scontrol": 'echo "$*" >>"$TOLD"; [[ $1 != show ]] || echo node1',
    "squeue": ":",
    "sbatch": ":",
}


def run_job(tmp_path: Path) -> tuple[int, list[str], str]:
    """Exit status of the job's script where training ends with 75, what it asked scontrol for, and what it told."""
    cfg = load(SlurmGenRun, "slurm_gen", [*_WORDS, f"out={tmp_path / 'jobs'}"])
    script = tmp_path / "train.sbatch"
    script.write_text(render_scripts(cfg, load_stages(cfg))["train.sbatch"])
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in _COMMANDS.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}\n")
        (commands / name).chmod(0o755)
    told = tmp_path / "told.txt"
    environment = os.environ | {
        "PATH": f"{commands}:{os.environ['PATH']}", "TOLD": str(told), "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "second",
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_PER_TASK": "1", "MEGAVIDEO_OUTPUT": str(tmp_path),
        "MEGAVIDEO_PREFLIGHT": "off",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(script), "data.uri=latents"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    asked = [line for line in told.read_text().splitlines() if not line.startswith("show")]
    return done.returncode, asked, done.stdout + done.stderr


def leave_sign(folder: Path, job: str, held: bool = True) -> None:
    sign = replace(this_process("train", "0" * 16, "0" * 16, {"SLURM_JOB_ID": job}), held=held)
    (folder / OWNER_FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / OWNER_FOLDER / f"00000001-{sign.plan}-{sign.token}.json").write_bytes(sign.to_bytes())


def test_it_waits_for_the_job_that_holds_the_run(tmp_path: Path) -> None:
    leave_sign(tmp_path / "micro", "55")
    status, asked, said = run_job(tmp_path)
    assert status == RETRY_STATUS, said
    assert asked == ["requeue 77", "update JobId=77 Dependency=afterany:55"]
    assert "in use by job 55: starts again when that has ended" in said


def test_it_ends_where_no_job_holds_the_run(tmp_path: Path) -> None:
    leave_sign(tmp_path / "micro", "")
    status, asked, said = run_job(tmp_path)
    assert (status, asked) == (RETRY_STATUS, []), said
    assert "in use by a process of no job" in said


@pytest.mark.parametrize(("job", "held"), [("77", True), ("55", False), (None, False)])
def test_it_starts_again_at_once_where_it_was_its_own(tmp_path: Path, job: str | None, held: bool) -> None:
    if job is not None:
        leave_sign(tmp_path / "micro", job, held)
    status, asked, said = run_job(tmp_path)
    assert (status, asked) == (RETRY_STATUS, ["requeue 77"]), said
    assert "starts again from begun: saved" in said
