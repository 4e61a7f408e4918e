"""A local Slurm cluster for the tests of this folder, and a dataset for their runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from megavideo.testing.dataset import write_dataset
from tests.slurm.lab import Lab
from tools.slurm_cluster.cluster import Shape, SlurmCluster, missing_parts


def cluster_or_skip(folder: Path, shape: Shape) -> SlurmCluster:
    """A cluster to enter; the test is skipped, with what is missing, where this machine cannot have one."""
    missing = missing_parts(shape.isolated)
    if missing:
        pytest.skip(f"no local Slurm cluster: {missing}")
    return SlurmCluster(folder, shape)


@pytest.fixture(scope="session")
def lab(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Four nodes."""
    root = tmp_path_factory.mktemp("slurm")
    (root / "runs").mkdir()
    with cluster_or_skip(root / "cluster", Shape(nodes=4)) as cluster:
        yield Lab(cluster, repo_root, root)


@pytest.fixture(scope="session")
def latents(lab: Lab) -> Path:
    """A small dataset of images and clips."""
    write_dataset(str(lab.root / "latents"), 24)
    return lab.root / "latents"
