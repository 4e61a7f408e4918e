"""The mesh and the reading of a launch: arithmetic, without processes."""

from __future__ import annotations

import pytest
import torch

from megavideo.config.layout import parse_layout
from megavideo.errors import ConfigError, TopologyError
from megavideo.parallel.processes.distributed import check_precision, first_host, read_launch
from megavideo.parallel.processes.mesh import ProcessMesh

HEADS = 8


@pytest.mark.parametrize(
    ("layout", "world_size"),
    [("zero1", 4), ("dp4-zero0", 4), ("tp2-cp2-ring-pp2-dp2", 16), ("tp2-sp-cp4-2d-pp2-dp2", 32)],
)
def test_every_rank_has_its_own_place(layout: str, world_size: int) -> None:
    meshes = [ProcessMesh.of(parse_layout(layout), HEADS, rank, world_size) for rank in range(world_size)]
    assert len({tuple(mesh.place().items()) for mesh in meshes}) == world_size
    for mesh in meshes:
        place = mesh.place()
        assert mesh.rank_at(place) == mesh.rank
        # the order of DeepSpeed's topology: pipe, then data (dp x cp), then model
        assert mesh.rank == (mesh.pp_rank * mesh.dp * mesh.cp + mesh.dp_rank * mesh.cp + mesh.cp_rank) * mesh.tp + (
            mesh.tp_rank
        )
        assert mesh.loss_replicas == mesh.dp * mesh.cp
        assert mesh.world_size == world_size


def test_groups_hold_every_rank_once_and_peers_differ_along_their_axis_only() -> None:
    mesh = ProcessMesh.of(parse_layout("tp2-sp-cp4-2d-pp2-dp2"), HEADS, 13, 32)
    for axes in (("tp",), ("ulysses",), ("ring",), ("ulysses", "ring", "dp"), ("tp", "ulysses", "ring", "pp")):
        groups = mesh.groups(*axes)
        assert sorted(rank for ranks in groups for rank in ranks) == list(range(32))
        for ranks in groups:
            for rank in ranks:
                place, first = mesh.place(rank), mesh.place(ranks[0])
                assert all(place[axis] == first[axis] for axis in place if axis not in axes)
        assert mesh.rank in mesh.peers(*axes)
    assert mesh.peers("tp") == (12, 13)


@pytest.mark.parametrize("layout", ["cp4-ring", "tp2-sp-cp2-ring", "cp4-2d", "tp2-cp2-ulysses", "tp2-sp-cp4-2d-pp2"])
def test_own_tokens_cover_the_pack_in_order(layout: str) -> None:
    parsed = parse_layout(layout)
    meshes = [ProcessMesh.of(parsed, HEADS, rank, parsed.model_size) for rank in range(parsed.model_size)]
    counts = [0] * 48
    for mesh in meshes:
        own, attended = mesh.own_tokens(48), mesh.attended_tokens(48)
        assert attended.start <= own.start < own.stop <= attended.stop
        for token in range(48)[own]:
            counts[token] += 1
    # each stage has all tokens; without sp every tp rank has the same ones
    assert set(counts) == {parsed.pp * meshes[0].loss_copies}
    tp_first = [mesh.attended_tokens(48).start for mesh in meshes if mesh.tp_rank == 0 and mesh.pp_rank == 0]
    assert tp_first == sorted(tp_first)


def test_dp_left_open_takes_all_processes() -> None:
    assert ProcessMesh.of(parse_layout("zero1"), HEADS, 2, 6).dp == 6
    assert ProcessMesh.of(parse_layout("tp2-zero1"), HEADS, 2, 6).dp == 3


@pytest.mark.parametrize(("layout", "world_size"), [("dp2-zero1", 1), ("dp2", 4), ("tp4", 2), ("tp2", 3)])
def test_processes_that_do_not_fit(layout: str, world_size: int) -> None:
    with pytest.raises(TopologyError, match=rf"layout {layout}.* {world_size} were started. Remedy"):
        ProcessMesh.of(parse_layout(layout), HEADS, 0, world_size)


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
    left = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}  # by a process of one that submitted the job
    assert read_launch(environment | left) == (9, 1, 16)
    by_torchrun = {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "none"}
    assert read_launch(environment | by_torchrun) == (3, 3, 8)


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
