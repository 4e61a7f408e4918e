"""The local cluster itself: what is missing is named, a power cut takes everything on a node, nothing stays behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.slurm.conftest import cluster_or_skip
from tests.slurm.lab import Lab
from tools.slurm_cluster import cluster as module
from tools.slurm_cluster.cluster import Shape, missing_parts

SCRIPT = "#!/bin/bash\n#SBATCH --nodes=1 --nodelist=node2 --output=/dev/null\nsleep 600\n"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_PATH", str(tmp_path))
    said = missing_parts()
    assert said is not None and "munged, slurmctld" in said and "install.sh" in said


def test_a_folder_that_is_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"longer than .* Remedy"):
        module.SlurmCluster(tmp_path / ("folder" * 12))


def test_a_power_cut_and_the_end(tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path = tmp_path_factory.mktemp("cut")  # a short name, for sockets lie in it
    with cluster_or_skip(tmp_path / "cluster", Shape(nodes=2)) as cluster:
        (tmp_path / "job.sh").write_text(SCRIPT)
        cluster.call("sbatch", tmp_path / "job.sh", cwd=tmp_path)
        lab = Lab(cluster, tmp_path, tmp_path)
        lab.wait_until(lambda: sleeping(cluster, "node2"), 60)
        (pid,) = sleeping(cluster, "node2")
        cluster.kill_node("node2")
        lab.wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10)
        cluster.start_node("node2")
        assert sleeping(cluster, "node2") == []
        daemons = [next(cluster.processes(name))[0] for name in cluster.names]
    assert not any(alive(pid) for pid in daemons)


def sleeping(cluster: module.SlurmCluster, node: str) -> list[int]:
    """Processes of the job's `sleep` on a node."""
    found = [pid for pid, _ in cluster.processes(node)]
    return [pid for pid in found if alive(pid) and Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
            and b"600" in Path(f"/proc/{pid}/cmdline").read_bytes()]  # fmt: skip


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
