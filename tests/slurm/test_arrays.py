"""Job arrays: a sweep has a run for each line of its file, and the tasks of ingest and encode share the work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megavideo.cli.slurm_gen import main
from megavideo.data.dataset.dataset import open_dataset
from tests.data.clip_files import moving_square, write_captions, write_clip
from tests.slurm.lab import ENDED, ON_FOUR, Lab

ON_ONE = ("--gpus-per-node=0", "--cpus-per-task=1", "--mem=1G", "--time=30")


def wait_for_array(lab: Lab, job_id: str, tasks: int, seconds: float) -> None:
    """Until every task of an array has ended well."""

    def states() -> list[str]:
        facts = lab.cluster.call("scontrol", "--oneliner", "show", "job", job_id).splitlines()
        found = [word.split("=")[1] for line in facts for word in line.split() if word.startswith("JobState=")]
        return found if len(found) == tasks else []

    lab.wait_until(lambda: states() and set(states()) <= set(ENDED), seconds)
    assert states() == ["COMPLETED"] * tasks


def test_a_sweep_has_a_run_for_each_line(lab: Lab) -> None:
    runs = lab.root / "runs.txt"
    runs.write_text("# rates\noptim.lr=1e-3\n\noptim.lr=2e-3 train.seed=1\n")
    stand_in = lab.stand_in("sweep", 'mkdir -p "$folder-said"; echo "$*" >"$folder-said/$SLURM_ARRAY_TASK_ID"')
    environment = stand_in | {"MEGAVIDEO_SWEEP": str(runs), "MEGAVIDEO_PREFLIGHT": "off"}
    job = lab.submit("slurm/sweep.sbatch", "sweep", options=[*ON_FOUR, "--array=1-2"], environment=environment)
    wait_for_array(lab, job.id, 2, 120)
    said = {path.name: path.read_text().split() for path in (lab.root / "runs" / "sweep-said").iterdir()}
    assert {"run=wan_14b", "name=sweep-1", "optim.lr=1e-3"} <= set(said["1"])
    assert {"name=sweep-2", "optim.lr=2e-3", "train.seed=1"} <= set(said["2"])
    assert not any(word.startswith(("curriculum=", "stage=")) for word in said["1"])
    assert (lab.root / "runs" / "sweep-2" / "slurm" / "jobs.log").exists()


@pytest.mark.slow
def test_tasks_share_the_work_of_ingest_and_encode(lab: Lab, tmp_path: Path) -> None:
    clips = lab.root / "clips"
    clips.mkdir()
    captions = {f"{number}.mp4": f"a square, number {number}" for number in range(6)}
    for number, name in enumerate(captions):
        write_clip(clips / name, moving_square(9, 32, 32 + 8 * number))
    write_captions(clips, captions)
    assert main(["cluster=laptop_test", "cluster.nodes=2", "run=micro", "curriculum=none", f"out={tmp_path}"]) == 0
    listed, latents = lab.root / "listed", lab.root / "encoded"
    words = [f"src={clips}", f"out={listed}", "filters=none"]
    job = lab.submit(tmp_path / "ingest.sbatch", "ingest", words, options=ON_ONE)
    wait_for_array(lab, job.id, 2, 600)
    words = [f"src={listed}", f"out={latents}", "unit_clips=2", "autoencoder.channels=4"]
    job = lab.submit(tmp_path / "encode.sbatch", "encode", words, options=ON_ONE)
    wait_for_array(lab, job.id, 2, 600)
    assert len((listed / "clips.jsonl").read_text().splitlines()) == 6
    assert json.loads((latents / "dataset.json").read_text())["num_samples"] == 6
    assert len(open_dataset(str(latents)).samples) == 6
