"""A run that meets thirty random faults is the run that met none: the same steps, the same samples, the same loss.

MEGAVIDEO_CHAOS_FAULTS and MEGAVIDEO_CHAOS_SEED choose another number of faults, and the same faults again.
"""

from __future__ import annotations

import math
import os
import random
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.cli.slurm_gen import main
from megavideo.testing.dataset import write_dataset
from megavideo.testing.settings import micro_words
from tests.data.fault_proxy import FaultProxy
from tests.s3_bucket import s3_test_bucket
from tests.slurm.chaos import Chaos
from tests.slurm.conftest import cluster_or_skip
from tests.slurm.lab import Job, Lab
from tools.slurm_cluster.cluster import Shape

pytestmark = pytest.mark.slow
FAULTS = int(os.environ.get("MEGAVIDEO_CHAOS_FAULTS", "30"))
SAMPLES = 60
BAD_SAMPLE = 7
STEPS = 25 * FAULTS
RECOVERY_SECONDS = 900.0  # on a machine that is busy with other things


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small file system that can be filled; mounted before the nodes, which see it then."""
    place = tmp_path_factory.mktemp("disk") / "runs"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="module")
def proxy() -> Iterator[tuple[FaultProxy, str]]:
    """A store that can be taken down, and the dataset in it."""
    with pytest.MonkeyPatch.context() as patch, s3_test_bucket(patch) as bucket:
        write_dataset(f"{bucket}/latents", SAMPLES, bad={BAD_SAMPLE: math.inf}, shard_bytes=4096)
        proxy = FaultProxy(os.environ["S3_ENDPOINT_URL"])
        patch.setenv("S3_ENDPOINT_URL", proxy.url)
        yield proxy, f"{bucket}/latents"
        proxy.stop()


@pytest.fixture(scope="module")
def stormy(repo_root: Path, disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three nodes, of which the job needs two."""
    with cluster_or_skip(tmp_path_factory.mktemp("cluster"), Shape(nodes=3)) as cluster:
        yield Lab(cluster, repo_root, disk.parent)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of two nodes."""
    out = tmp_path_factory.mktemp("scripts")
    words = ["cluster=laptop_test", "cluster.nodes=2", "run=micro", "curriculum=none", f"out={out}"]
    assert main(words) == 0
    return out / "train.sbatch"


def start(lab: Lab, script: Path, name: str, uri: str, cache: Path) -> Job:
    words = micro_words(
        layout="dp2-zero1", data__uri=uri, data__cache=cache, data__cache_gb=0.00003,
        data__retry_seconds=4, data__text_tokens_per_pack=96, train__steps=STEPS, checkpoint__every=4,
        checkpoint__keep_last=3, guard__hang_seconds=20, train__log_every=10,
    )  # fmt: skip
    return lab.submit(script, name, words, options=["--time=240"])


def test_thirty_faults_change_nothing(
    stormy: Lab, script: Path, disk: Path, proxy: tuple[FaultProxy, str], tmp_path: Path
) -> None:
    seed = int(os.environ.get("MEGAVIDEO_CHAOS_SEED", secrets.randbelow(10_000)))
    calm = start(stormy, script, "calm", proxy[1], tmp_path / "calm")
    assert calm.wait(3600)["JobState"] == "COMPLETED", calm.said()
    job = start(stormy, script, "stormy", proxy[1], tmp_path / "stormy")
    chaos = Chaos(job, proxy[0], disk, random.Random(seed))
    kinds = list(chaos.kinds())
    met = [kinds[number % len(kinds)] for number in range(FAULTS)]
    chaos.draw.shuffle(met)
    print(f"seed {seed}")
    for number, kind in enumerate(met):
        reached = max(job.steps(), default=0) + chaos.draw.randint(4, 9)
        job.wait_for_step(reached, RECOVERY_SECONDS)
        print(f"fault {number + 1} at step {job.steps()[-1]}: {kind}", flush=True)
        chaos.kinds()[kind]()
    facts = job.wait(3600)
    assert facts["JobState"] == "COMPLETED", job.said()
    compare(calm, job)


def compare(calm: Job, stormy: Job) -> None:
    assert stormy.steps() == calm.steps() == list(range(1, STEPS + 1))
    skipped = 0
    for expected, row in zip(calm.rows(), stormy.rows(), strict=True):
        assert (row["skipped"], row["tokens"], row["epoch"]) == (
            expected["skipped"], expected["tokens"], expected["epoch"]
        )  # fmt: skip
        skipped += row["skipped"]
        if expected["loss"] is None:
            assert row["loss"] is None and row["skipped"]
        else:
            assert row["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert skipped > 0  # the sample that is not finite was met
    ends = [CheckpointReader(find_checkpoint(job.folder)).manifest for job in (calm, stormy)]
    assert ends[0].step == ends[1].step == STEPS
    assert ends[0].progress["samples"] == ends[1].progress["samples"]
