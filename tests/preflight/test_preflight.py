"""Faults of nodes, pairs and shared places are found and told apart, by four real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from megavideo.cli.main import main
from megavideo.cli.verbs.preflight import VERB
from megavideo.config.schema.preflight import PreflightRun
from megavideo.observe.whole_file import write_file
from megavideo.preflight.judge import PreflightReport
from megavideo.preflight.run import preflight
from tests.preflight.ranks import CALM, Rank, Ranks

UNREACHABLE = {"S3_ENDPOINT_URL": "http://127.0.0.1:1"}


@pytest.fixture(scope="module")
def four() -> Iterator[Ranks]:
    ranks = Ranks(4)
    yield ranks
    ranks.close()


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return [f"output={tmp_path / 'runs'}", f"bad_nodes={tmp_path / 'bad.txt'}", f"data.uri={tmp_path / 'data'}"]


def same(reports: dict[int, PreflightReport]) -> PreflightReport:
    first, *others = reports.values()
    assert all(other == first for other in others)
    return first


def faults(report: PreflightReport) -> dict[str, list[str]]:
    """Of each bad node the checks that found something."""
    return {node.host: [fault.partition(":")[0] for fault in node.faults] for node in report.nodes if not node.good}


def test_good_nodes(four: Ranks, words: list[str], tmp_path: Path) -> None:
    report = same(four.run(words))
    assert faults(report) == {} and report.bad == report.unlocated == report.slow_links == ()
    assert (tmp_path / "bad.txt").read_text() == ""
    assert [(node.host, node.ranks) for node in report.nodes] == [(f"n{rank}", (rank,)) for rank in range(4)]
    assert len(report.links) == 6 and all(link.gb_per_second > 0 for link in report.links)
    checks = ["store", "output", "disk", "versions", "gpu", "matmul", "clock", "links"]
    assert all(list(node.checks) == checks for node in report.nodes)
    for folder in ("runs", "data"):
        assert list((tmp_path / folder).iterdir()) == []  # nothing is left behind
    assert VERB.failed is not None and not VERB.failed(report)
    table = VERB.describe(report).splitlines()
    assert table[0].split() == ["node", *checks]
    assert table[-1] == "4 of 4 nodes are good"


def test_alone_and_settings_without_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # put back at the end
    assert main(["preflight", f"output={tmp_path}", "data.write=false"]) == 2
    assert "data.write=False: has no effect without a store" in capfd.readouterr().err
    words = [word for word in CALM if not word.startswith("data.")]
    assert main(["preflight", f"output={tmp_path}", *words, "limits.gpus_per_node=0", "--json"]) == 0
    (node,) = json.loads(capfd.readouterr().out)["nodes"]
    assert node["good"] and list(node["checks"]) == ["output", "disk", "versions", "gpu", "matmul"]
    assert main(["preflight", f"output={tmp_path}", *words, "limits.gpus_per_node=8"]) == 1
    assert "gpu: 0 GPUs, expected 8" in capfd.readouterr().out


def test_each_bad_node_is_named_with_its_fault(
    four: Ranks, words: list[str], tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = {name: os.environ[name] for name in os.environ if name.startswith(("AWS_", "S3_"))}
    ranks: dict[int, Rank | None] = {
        0: Rank(environment=store, clock_ahead_seconds=-40.0),
        1: Rank([f"output={tmp_path / 'other'}"], store),
        2: Rank(environment=store | UNREACHABLE),
        3: Rank(environment=store),
    }
    report = same(four.run([*words, f"data.uri={s3_bucket}/latents"], ranks))
    assert faults(report) == {"n0": ["clock"], "n1": ["output"], "n2": ["store"]}
    assert (tmp_path / "bad.txt").read_text() == "n0\nn1\nn2\n"  # by rank 3, the only one on a good node
    shown = VERB.describe(report)
    assert re.search(r"BAD n0: clock: is -(39\.[5-9]|40\.[0-4])", shown)  # a busy machine answers late
    assert "BAD n1: output: " in shown and "what rank 0 wrote is not there" in shown
    assert "BAD n2: store: " in shown and "given up after" in shown
    assert VERB.failed is not None and VERB.failed(report)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk(four: Ranks, words: list[str], tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        (small / "shard").write_bytes(bytes(2_000_000))
        report = same(four.run([*words, "limits.cache_gb=0.001"], {1: Rank([f"data.cache={small}"])}))
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert faults(report) == {"n1": ["disk"]}
    assert f"{small} has 0.0 GB free, cache needs 0.001" in report.nodes[1].faults[0]


def test_a_slow_pair_is_told_from_a_slow_node(four: Ranks, words: list[str], tmp_path: Path) -> None:
    # a quarter of a second for 20 kB is slow, however busy this machine is
    slow = [*words, "limits.link_gb_per_second=1.6e-4", "limits.link_share=0.5", "link_mb=0.02"]
    pair = same(four.run(slow, {1: Rank(slow_peers=[2]), 2: Rank(slow_peers=[1])}))
    assert [(link.first, link.second) for link in pair.slow_links] == [("n1", "n2")]
    assert pair.bad == () and (tmp_path / "bad.txt").read_text() == ""
    assert "slow pair n1 - n2" in VERB.describe(pair)
    node = same(four.run(slow, {2: Rank(slow_peers=[0, 1, 3])}))
    assert faults(node) == {"n2": ["links"]} and node.slow_links == ()


@pytest.fixture
def three() -> Iterator[Ranks]:
    ranks = Ranks(3)
    yield ranks
    ranks.close()


def test_of_three_nodes_none_sits_out_the_first_call(three: Ranks, words: list[str]) -> None:
    """In each round one of them has no pair; the communicator must be there by then, which takes all."""
    as_nccl: dict[int, Rank | None] = {rank: Rank(as_nccl=True) for rank in range(3)}
    report = same(three.run([*words, "check_seconds=20"], as_nccl))
    assert report.unlocated == () and report.bad == ()
    assert [(link.first, link.second) for link in report.links] == [("n0", "n1"), ("n0", "n2"), ("n1", "n2")]


def test_a_first_call_that_hangs_in_the_host_is_told_of(three: Ranks, words: list[str]) -> None:
    ranks: dict[int, Rank | None] = {rank: Rank(as_nccl=True, never_connects=rank == 1) for rank in range(3)}
    report = same(three.run([*words, "check_seconds=10"], ranks))
    assert report.unlocated == ("links were not measured: the first call of all ranks had no answer in 5 s",)
    assert report.links == () and report.bad == ()
    assert all("clock" in node.checks for node in report.nodes)


def test_a_rank_that_never_comes_is_named_with_its_host(four: Ranks, words: list[str], tmp_path: Path) -> None:
    report = same(four.run([*words, "meet_seconds=4"], {2: None}))
    assert report.bad == ("n2",) and (tmp_path / "bad.txt").read_text() == "n2\n"
    assert "1 of 4 ranks did not come in 4 s: 2, among them all of n2" in report.unlocated[0]


@pytest.mark.parametrize("others", [True, False])
def test_a_rank_that_is_cut_off_does_not_speak_for_the_others(
    others: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes rank 0 for missing; only where nobody else judges is that written."""
    bad = tmp_path / "bad.txt"
    bad.write_text("of-an-earlier-run\n")
    launch = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("megavideo.preflight.run._VERDICT_SECONDS", 20.0 if others else 0.2)
    writer = threading.Timer(2.0, write_file, (bad, b"n1\n"))
    if others:
        writer.start()
    report = preflight(PreflightRun(output=str(tmp_path), bad_nodes=str(bad), meet_seconds=1.0))
    writer.cancel()
    assert report.bad == ("127",)  # the first part of the address
    assert bad.read_text() == ("n1\n" if others else "127\n")


def test_a_file_system_that_hangs_on_one_node(four: Ranks, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text("{}")
    limits = [*words, "data.write=false", "check_seconds=6"]
    report = same(four.run(limits, {3: Rank(hung_reads=True)}))
    assert faults(report) == {"n3": ["store"]}
    assert report.nodes[3].faults == ("store: no answer in 6 s",)


def test_a_place_that_fails_on_all_nodes_is_no_fault_of_theirs(four: Ranks, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder should be")
    report = same(four.run(words))
    assert report.bad == () and "store fails on all 4 nodes: " in report.unlocated[0]
    assert VERB.failed is not None and VERB.failed(report)
