"""What measurements of ranks say of nodes and of pairs."""

from __future__ import annotations

from itertools import combinations

import pytest

from megavideo.config.schema.preflight import PreflightLimits
from megavideo.preflight.findings import Finding, limited
from megavideo.preflight.judge import RankAnswer, judge
from megavideo.preflight.links import pairings
from megavideo.preflight.meeting import host_names


def answers_of(matrix: dict[tuple[int, int], float], count: int) -> dict[int, RankAnswer]:
    """Answers of `count` ranks on as many nodes with the speeds of pairs in GB/s, 10 where none is given."""
    speeds = {pair: matrix.get(pair, 10.0) * 1e9 for pair in combinations(range(count), 2)}
    return {
        rank: RankAnswer((), link_speeds={a + b - rank: speed for (a, b), speed in speeds.items() if rank in (a, b)})
        for rank in range(count)
    }


def hosts(count: int) -> dict[int, str]:
    return {rank: f"n{rank}" for rank in range(count)}


def test_two_slow_nodes_of_six_and_a_slow_pair_of_the_others() -> None:
    matrix = {pair: 1.0 for pair in combinations(range(6), 2) if 1 in pair or 4 in pair} | {(2, 3): 1.0}
    report = judge(hosts(6), answers_of(matrix, 6), PreflightLimits())  # though most pairs are slow
    assert report.bad == ("n1", "n4")
    assert [(link.first, link.second) for link in report.slow_links] == [("n2", "n3")]


def test_of_two_nodes_none_is_blamed_for_their_pair() -> None:
    report = judge(hosts(2), answers_of({(0, 1): 1.0}, 2), PreflightLimits(link_gb_per_second=10.0))
    assert report.bad == () and len(report.slow_links) == 1


def test_a_rank_that_gives_no_answer_is_bad_and_slow_devices_and_other_versions_are_found() -> None:
    def answer(seconds: float, torch: str) -> RankAnswer:
        found = (Finding("matmul", True, "", seconds), Finding("versions", True, "ok", {"torch": torch}))
        return RankAnswer(found)

    answers = {0: answer(1.0, "2.11"), 1: answer(1.1, "2.11"), 2: answer(1.8, "2.11"), 3: answer(1.0, "2.10")}
    report = judge({0: "a", 1: "a", 2: "b", 3: "c", 4: "d"}, answers, PreflightLimits())
    assert report.bad == ("b", "c", "d")
    told = {node.host: node.faults for node in report.nodes}
    assert told["a"] == ()
    assert told["b"] == ("matmul: rank 2: 1800.00 ms, the median is 1050.00",)
    assert told["c"] == ("versions: torch 2.10, most have 2.11",)
    assert told["d"] == ("rank 4 gave no answer",)


def test_a_store_that_is_down_is_no_fault_of_those_who_answer() -> None:
    down = RankAnswer((Finding("store", False, "given up"),))
    report = judge(hosts(4), dict.fromkeys(range(3), down), PreflightLimits())
    assert report.bad == ("n3",) and report.unlocated == ("store fails on all 3 nodes: given up",)


@pytest.mark.parametrize(("count", "rounds"), [(1, 15), (2, 15), (5, 15), (8, 15), (16, 15), (40, 15)])
def test_pairings(count: int, rounds: int) -> None:
    made = pairings(count, rounds)
    pairs = [pair for each in made for pair in each]
    assert len(pairs) == len(set(pairs)) and len(made) <= rounds
    for each in made:
        met = [node for pair in each for node in pair]
        assert len(met) == len(set(met)) == count - count % 2
    if count <= rounds + 1:
        assert len(pairs) == count * (count - 1) // 2


def test_host_names() -> None:
    assert host_names("gpu[07-09,12],x") == ["gpu07", "gpu08", "gpu09", "gpu12", "x"]
    assert host_names("r[1-2]n[1,3]-ib,y9") == ["r1n1-ib", "r1n3-ib", "r2n1-ib", "r2n3-ib", "y9"]
    assert host_names("") == []


def test_a_defect_in_a_check_is_raised_and_what_a_machine_causes_is_found() -> None:
    def broken() -> Finding:
        raise KeyError("a bug")

    def full() -> Finding:
        raise OSError("No space left on device")

    with pytest.raises(KeyError):
        limited("disk", 5.0, broken)
    assert limited("disk", 5.0, full) == Finding("disk", False, "No space left on device")
