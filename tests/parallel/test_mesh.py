"""The mesh and the reading of a launch: arithmetic, without processes."""

from __future__ import annotations

import pytest
import torch

from megavideo.config.layout import parse_layout
from megavideo.errors import ConfigError, TopologyError
from megavideo.parallel.distributed import check_precision, first_host, read_launch
from megavideo.parallel.mesh import ProcessMesh


@pytest.mark.parametrize(("layout", "world_size"), [("zero1", 4), ("dp4-zero0", 4), ("tp2-cp2-ring-pp2-dp2", 16)])
def test_every_rank_has_its_own_place(layout: str, world_size: int) -> None:
    meshes = [ProcessMesh.of(parse_layout(layout), rank, world_size) for rank in range(world_size)]
    assert len({mesh.coordinates for mesh in meshes}) == world_size
    for mesh in meshes:
        tp, cp, dp, pp = mesh.coordinates
        assert mesh.rank == tp + mesh.tp * (cp + mesh.cp * (dp + mesh.dp * pp))
        assert mesh.dp_rank == dp
        assert mesh.loss_replicas == mesh.dp * mesh.cp
        assert mesh.tp * mesh.cp * mesh.dp * mesh.pp == world_size


def test_dp_left_open_takes_all_processes() -> None:
    assert ProcessMesh.of(parse_layout("zero1"), 2, 6).dp == 6
    assert ProcessMesh.of(parse_layout("tp2-zero1"), 2, 6).dp == 3


@pytest.mark.parametrize(("layout", "world_size"), [("dp2-zero1", 1), ("dp2", 4), ("tp4", 2), ("tp2", 3)])
def test_processes_that_do_not_fit(layout: str, world_size: int) -> None:
    with pytest.raises(TopologyError, match=rf"layout {layout}.* {world_size} were started. Remedy"):
        ProcessMesh.of(parse_layout(layout), 0, world_size)


def test_alone_and_under_torchrun() -> None:
    assert read_launch({}) == (0, 0, 1)
    assert read_launch({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}) == (5, 1, 8)


def test_under_srun() -> None:
    environment = {
        "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
        "SLURM_NTASKS": "16",
        "SLURM_STEP_NODELIST": "gpu[07-08]",
        "SLURM_JOB_ID": "1234567",
    }
    assert read_launch(environment) == (9, 1, 16)
    assert environment["MASTER_ADDR"] == "gpu07" and environment["MASTER_PORT"] == "30067"
    # in an allocation, but started without srun
    assert read_launch({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) == (0, 0, 1)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu[07-09,12],x", "gpu07"), ("gpu[3,5-7]", "gpu3"), ("login", "login"), ("a,b", "a"), ("n[01-02]-ib", "n01-ib")],
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_precision_that_a_gpu_does_not_take() -> None:
    """fp32 is refused on a GPU before anything is built, with the field's own name; a CPU takes both."""
    check_precision("train.precision", "fp32", torch.device("cpu"))
    check_precision("train.precision", "bf16", torch.device("cuda", 0))
    with pytest.raises(ConfigError, match=r"train\.precision='fp32'.*set train\.precision=bf16"):
        check_precision("train.precision", "fp32", torch.device("cuda", 0))
