"""The whole curriculum as a chain of jobs, each stage under another layout; and a node that loses power."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megavideo.testing.settings import micro_words
from tests.slurm.lab import ON_FOUR, Job, Lab

pytestmark = pytest.mark.slow
STEPS = 6
LAYOUTS = ["dp4-zero1", "tp2-dp2-zero1", "tp2-sp-dp2-zero2", "cp2-ring-pp2-zero1", "tp2-sp-pp2-zero1"]


def words(latents: Path, steps: int, **settings: object) -> list[str]:
    """Of a run on four ranks."""
    given = {"data__uri": latents, "train__steps": steps, "train__packs_per_step": 4, "checkpoint__every": 2}
    # stages say for themselves what a layout is, and how the rate falls
    return [word for word in micro_words(curriculum="small", **given, **settings) if "warmup" not in word]


def test_the_chain_trains_every_stage_and_ends_in_videos(lab: Lab, latents: Path) -> None:
    (lab.root / "prompts.txt").write_text("a red shape\na blue shape, moving\n")
    environment = lab.environment("chain") | {
        "MEGAVIDEO_PROMPTS": str(lab.root / "prompts.txt"), "MEGAVIDEO_PREFLIGHT": "off",
        "MEGAVIDEO_SAMPLE_OVERRIDES": "steps=2 frames=5 height=32 width=32 guidance=1",
    }  # fmt: skip
    said = lab.cluster.call(
        "slurm/curriculum.sh", *ON_FOUR, *words(latents, STEPS), extra=environment, cwd=lab.checkout
    )
    jobs = dict(line.split() for line in said.splitlines())
    assert list(jobs) == [f"stage{number}" for number in range(1, 6)] + ["evaluate"]
    folder = lab.root / "runs" / "chain"
    for name, job_id in jobs.items():
        log = lab.checkout / "slurm" / "logs" / f"chain-{name}-{job_id}.log"
        job = Job(lab, job_id, folder, log)
        facts = job.wait(1800)
        assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), job.said()
        assert facts["StdOut"] == str(log)
        log.unlink()
    assert job.steps() == list(range(1, 5 * STEPS + 1))
    stages = [json.loads(line) for line in (folder / "stages.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(row["layout"] for row in stages)) == LAYOUTS  # rows of begin and end
    videos = sorted((folder / "evaluation" / "samples").glob("*.mp4"))
    assert len(videos) == 2 and all(video.stat().st_size > 500 for video in videos)
    assert (folder / "report.html").stat().st_size > 10_000


def test_a_node_without_power_costs_a_restart(lab: Lab, latents: Path) -> None:
    job = lab.submit("slurm/stage2.sbatch", "power", words(latents, 60), environment={"MEGAVIDEO_PREFLIGHT": "off"})
    job.wait_for_step(5, 600)
    lab.cluster.kill_node("node3")
    try:
        job.wait_until(lambda: job.facts()["JobState"] == "PENDING", 120)
    finally:
        lab.cluster.start_node("node3")
    facts = job.wait(900)
    # a message that was meant for the dead node may reach it once it is back, and ends what runs there by then
    assert facts["JobState"] == "COMPLETED" and facts["Restarts"] in ("1", "2"), job.said()
    assert job.steps() == list(range(1, 61))
