"""The committed job scripts on a real Slurm cluster of four nodes. All jobs are submitted at once: most only wait."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megavideo.testing.settings import micro_words
from tests.slurm.conftest import cluster_or_skip
from tests.slurm.lab import ON_FOUR, Job, Lab
from tools.slurm_cluster.cluster import Shape

STEPS = 30
STAGE = "slurm/stage3.sbatch"

STAND_INS = {
    # never gets to a checkpoint
    "stuck": "[[ $verb == preflight ]] || exit 1",
    # dies by a signal on one rank, while the others would go on for ever; each start gets one checkpoint further
    "dying": """
        [[ $verb == preflight ]] && exit
        mkdir -p "$folder/checkpoints/step_0000000$start"
        ((start == 5)) && exit 0
        ((SLURM_PROCID == 1)) && kill -KILL $$
        sleep 600""",
    # all find the fault, but the first one's end is the end of all
    "wrong": "[[ $verb == preflight ]] || { sleep $((SLURM_PROCID * 3)); exit 2; }",
    # node2 is bad
    "picky": """
        if [[ $verb == preflight && $SLURMD_NODENAME == node2 ]]; then
          echo node2 >"${!#/bad_nodes=/}"
          exit 1
        fi""",
}


def words(latents: Path) -> list[str]:
    settings = {"curriculum": "small", "data__uri": latents, "layout": "tp2-dp2-zero1", "train__steps": STEPS}
    return micro_words(**settings, train__log_every=1)


@pytest.fixture(scope="module")
def jobs(lab: Lab, latents: Path) -> dict[str, Job]:
    """Each job by the name of its run."""
    at_once = {"MEGAVIDEO_PREFLIGHT": "off"}
    found = {
        "run": lab.submit(STAGE, "run", words(latents), environment=at_once),
        "fault": lab.submit(STAGE, "fault", [*words(latents), "optim.lr=-1"], environment=at_once),
    }
    for name, script in STAND_INS.items():
        nodes = ["--nodes=2"] if name == "picky" else []
        found[name] = lab.submit(STAGE, name, environment=lab.stand_in(name, script), options=[*ON_FOUR, *nodes])
    return found


def test_a_run_told_to_stop_saves_and_goes_on(jobs: dict[str, Job]) -> None:
    job = jobs["run"]
    job.wait_for_step(3)
    job.signal("USR1")
    facts = job.wait()
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("COMPLETED", "0:0", "1"), job.said()
    assert job.steps() == list(range(1, STEPS + 1))
    assert "layout tp2-dp2-zero1 on 4 processes" in job.said()
    stopped = re.search(r"starts again from step_(\d+): saved", job.record())
    assert stopped is not None and 3 <= int(stopped[1]) < STEPS
    assert f"going on from {job.folder}/checkpoints/step_{stopped[1]}" in job.said()
    assert (job.folder / "slurm" / f"wan_14b-stage3-{job.id}.log").resolve() == job.log


def test_a_users_fault_ends_the_job(jobs: dict[str, Job]) -> None:
    facts = jobs["fault"].wait()
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0")
    assert "error: optim.lr=-1" in jobs["fault"].said()
    assert "settings or data are at fault" in jobs["fault"].record()


def test_the_first_rank_to_fail_says_why(jobs: dict[str, Job]) -> None:
    facts = jobs["wrong"].wait()
    assert (facts["ExitCode"], facts["Restarts"]) == ("2:0", "0")
    assert "rank 0 on node1 ended with status 2" in jobs["wrong"].record()


def test_restarts_without_progress_end_and_say_why(jobs: dict[str, Job]) -> None:
    facts = jobs["stuck"].wait()
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "1:0", "3")
    assert jobs["stuck"].record().count("starts again from begun: status 1") == 3
    assert "3 restarts in a row brought no checkpoint newer than begun" in jobs["stuck"].said()


def test_a_run_that_gets_further_starts_as_often_as_it_takes(jobs: dict[str, Job]) -> None:
    facts = jobs["dying"].wait()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "5"), jobs["dying"].said()
    assert jobs["dying"].record().count("rank 1 on node2 ended with status 137") == 5


def test_a_node_that_fails_preflight_is_left_out(jobs: dict[str, Job]) -> None:
    facts = jobs["picky"].wait()
    assert (facts["JobState"], facts["Restarts"], facts["ExcNodeList"]) == ("COMPLETED", "1", "node2")
    assert "left out are node2" in jobs["picky"].record()


def test_a_stage_of_256_gpus_is_accepted(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with cluster_or_skip(tmp_path_factory.mktemp("many"), Shape(nodes=32, isolated=False)) as cluster:
        cluster.call("sbatch", "--test-only", STAGE, cwd=repo_root)
        with pytest.raises(RuntimeError, match="node configuration is not available"):
            cluster.call("sbatch", "--test-only", "--nodes=33", STAGE, cwd=repo_root)
