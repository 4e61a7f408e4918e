"""Going on from the newest checkpoint that is whole: on two real ranks, with damage that only one of them meets."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megavideo.checkpoint.manifest import list_checkpoints, read_manifest
from megavideo.checkpoint.read import CheckpointReader
from megavideo.testing.ranks import run_ranks
from megavideo.testing.spoil import spoil_values
from tests.checkpoint.restore_cases import Call, in_turn

ZERO3, TENSOR = "dp2-zero3", "tp2-sp-zero1"
FIRST, SECOND, THIRD = "step_00000001", "step_00000002", "step_00000003"
FILES = ("fragments_00000.safetensors", "fragments_00001.safetensors")

Ranks = list[dict[str, Any]]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def nothing(run: Path, store: Path) -> None:
    """No damage."""


def second_rank_meets_damage(run: Path, store: Path) -> None:
    flip(run / THIRD / FILES[1])


def values_are_not_finite(run: Path, store: Path) -> None:
    name = next(iter(read_manifest(run / THIRD).shapes))
    spoil_values(run / THIRD, "exp_avg_sq", name, math.inf)
    spoil_values(run / THIRD, "weight", name)


def parts_are_missing(run: Path, store: Path) -> None:
    (run / THIRD / "manifest.json").write_text("{")
    (run / SECOND / FILES[0]).unlink()
    (run / f"damaged-{THIRD}").mkdir()


def all_damaged(run: Path, store: Path) -> None:
    for folder in list_checkpoints(run):
        flip(folder / FILES[0])


def run_is_gone(run: Path, store: Path) -> None:
    shutil.rmtree(run)


def copy_is_damaged(run: Path, store: Path) -> None:
    shutil.rmtree(run)
    flip(store / THIRD / FILES[1])


@dataclass(frozen=True)
class Restored:
    """A case: what was saved before, the damage, and how it goes on."""

    saved: str
    damage: Callable[[Path, Path], None]
    function: str = "go_on"
    layout: str = ZERO3
    options: tuple[tuple[str, Any], ...] = ()


CASES = {
    "whole": Restored("plain", nothing),
    "damaged": Restored("plain", second_rank_meets_damage),
    "not_finite": Restored("plain", values_are_not_finite),
    "missing": Restored("plain", parts_are_missing),
    "none_left": Restored("plain", all_damaged),
    "none_at_all": Restored("plain", run_is_gone),
    "back": Restored("plain", nothing, options=(("at_most", 2),)),
    "weights": Restored("plain", nothing, "begin_from"),
    "weights_elsewhere": Restored("plain", nothing, "begin_from", TENSOR),
    "weights_damaged": Restored("plain", second_rank_meets_damage, "begin_from"),
    "weights_not_finite": Restored("plain", values_are_not_finite, "begin_from"),
    "damaged_here_only": Restored("copied", second_rank_meets_damage),
    "run_gone": Restored("copied", run_is_gone),
    "copy_damaged": Restored("copied", copy_is_damaged),
    "from_straight": Restored("straight", nothing, layout=TENSOR, options=(("keep_fetched", False),)),
}


@dataclass(frozen=True)
class Outcomes:
    """What the ranks tell of what they saved and of each case, and the folders that are left."""

    root: Path
    saved: dict[str, Ranks]
    restored: dict[str, Ranks]

    def run(self, name: str) -> Path:
        """The checkpoints of a case."""
        return self.root / name / "run"

    def store(self, name: str) -> Path:
        """Its store."""
        return self.root / name / "store"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """All cases, in two starts of two processes."""
    root = tmp_path_factory.mktemp("restore")

    def call(name: str, function: str, layout: str, *more: Any) -> Call:
        return Call(function, (layout, str(root / name / "run"), *more))

    def uri(name: str, saved: str) -> str | None:
        return None if saved == "plain" else str(root / name / "store")

    kinds = ("plain", "copied", "straight")
    saves = [call(kind, "save_three", ZERO3, uri(kind, kind), kind == "straight") for kind in kinds]
    saved = run_ranks(in_turn, (saves,), root / "logs_saves", processes=2)
    calls = []
    for name, case in CASES.items():
        shutil.copytree(root / case.saved, root / name)
        case.damage(root / name / "run", root / name / "store")
        more = (uri(name, case.saved), dict(case.options)) if case.function == "go_on" else ()
        calls.append(call(name, case.function, case.layout, *more))
    restored = run_ranks(in_turn, (calls,), root / "logs_calls", processes=2)
    return Outcomes(
        root,
        {kind: list(ranks) for kind, ranks in zip(kinds, zip(*saved, strict=True), strict=True)},
        {name: list(ranks) for name, ranks in zip(CASES, zip(*restored, strict=True), strict=True)},
    )


def check_restored(outcomes: Outcomes, name: str, step: int, saved: str = "plain") -> None:
    """Every rank has its states of that step, and trains on as the run that was not ended."""
    for mine, wrote in zip(outcomes.restored[name], outcomes.saved[saved], strict=True):
        assert mine["step"] == step
        assert mine["progress"] == {"stage": "low", "at": step}
        assert mine["digest"] == wrote["digests"][step - 1]
        assert mine["losses"] == pytest.approx(wrote["losses"][step:], rel=1e-6)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["plain", "copied", "straight"])
def test_ranks_save_in_the_background(outcomes: Outcomes, kind: str) -> None:
    for rank in outcomes.saved[kind]:
        assert rank["events"] == [[1, None, None], [2, None, None], [3, None, None]]
        assert rank["digests"] == outcomes.saved["plain"][rank["rank"]]["digests"]


def test_all_go_on_exactly(outcomes: Outcomes) -> None:
    check_restored(outcomes, "whole", 3)
    assert [mine["told"] for mine in outcomes.restored["whole"]] == [[], []]
    assert [mine["newest"] for mine in outcomes.restored["whole"]] == [3, None]
    assert names(outcomes.run("whole")) == [FIRST, SECOND, THIRD]


def test_a_damaged_newest_one_is_set_aside_by_all(outcomes: Outcomes) -> None:
    """Under ZeRO-3 each rank reads its own file, and only one of them meets the damage."""
    check_restored(outcomes, "damaged", 2)
    (told,) = outcomes.restored["damaged"][0]["told"]
    assert f"{THIRD} IS DAMAGED: it is set aside as damaged-{THIRD}" in told
    assert "rank 1: " in told and f"{FILES[1]}: damaged" in told and "rank 0" not in told
    assert names(outcomes.run("damaged")) == [f"damaged-{THIRD}", FIRST, SECOND]


def test_one_that_is_not_finite_is_set_aside_by_all(outcomes: Outcomes) -> None:
    """Its hashes are right; training on from it could only fail."""
    check_restored(outcomes, "not_finite", 2)
    (told,) = outcomes.restored["not_finite"][0]["told"]
    assert f"{THIRD} IS DAMAGED: it is set aside as damaged-{THIRD}" in told
    assert "values that are not finite: " in told
    assert re.search(r"\bweight of '\S+' \(1 of ", told) and re.search(r"exp_avg_sq of '\S+' \(1 of ", told)
    assert names(outcomes.run("not_finite")) == [f"damaged-{THIRD}", FIRST, SECOND]


def test_manifests_and_files_that_are_missing(outcomes: Outcomes) -> None:
    check_restored(outcomes, "missing", 1)
    assert outcomes.restored["missing"][0]["newest"] == 2  # whose manifest is whole
    aside = [f"damaged-{SECOND}", f"damaged-{THIRD}", f"damaged-{THIRD}.1"]
    assert names(outcomes.run("missing")) == [*aside, FIRST]


def test_none_that_is_whole_is_an_error_and_none_at_all_a_beginning(outcomes: Outcomes) -> None:
    for mine in outcomes.restored["none_left"]:
        assert mine["error"] == "CheckpointError"
        assert "no checkpoint is left that is whole" in mine["message"]
    assert [mine["step"] for mine in outcomes.restored["none_at_all"]] == [None, None]


def test_going_back_removes_what_came_later(outcomes: Outcomes) -> None:
    check_restored(outcomes, "back", 2)
    assert names(outcomes.run("back")) == [FIRST, SECOND]


@pytest.mark.parametrize("name", ["weights", "weights_elsewhere"])
def test_a_run_begins_with_weights_and_averages_of_another(outcomes: Outcomes, name: str) -> None:
    found, reader = outcomes.restored[name], CheckpointReader(outcomes.run(name) / THIRD)
    for state in ("weight", "ema"):
        expected = sum(float(values.double().abs().sum()) for values in reader.whole(state).values())
        assert sum(mine["sums"][state] for mine in found) == pytest.approx(expected, rel=1e-9)
    assert all(mine["sums"][state] == 0 for mine in found for state in ("exp_avg", "exp_avg_sq"))
    assert {step for mine in found for step in mine["steps"]} == {0.0}
    # the first loss is that of the same weights
    assert found[0]["loss"] == pytest.approx(outcomes.saved["plain"][0]["losses"][3:4], rel=1e-5)


def test_a_run_does_not_begin_with_damaged_weights(outcomes: Outcomes) -> None:
    for mine in outcomes.restored["weights_damaged"]:
        assert mine["error"] == "CheckpointError" and "rank 1: " in mine["message"]
    for mine in outcomes.restored["weights_not_finite"]:
        assert mine["error"] == "CheckpointError" and "weight of" in mine["message"]
        assert "exp_avg_sq" not in mine["message"]  # which a run that begins does not take


def test_copies_are_the_same_bytes(outcomes: Outcomes) -> None:
    for name in (FIRST, SECOND, THIRD):
        assert names(outcomes.run("copied") / name) == ["fragments_00000.safetensors", FILES[1], "manifest.json"]
        for file in names(outcomes.run("copied") / name):
            copy = outcomes.store("copied") / name / file
            assert copy.read_bytes() == (outcomes.run("copied") / name / file).read_bytes()


def test_what_is_damaged_or_gone_here_comes_from_the_store(outcomes: Outcomes) -> None:
    check_restored(outcomes, "damaged_here_only", 3, "copied")
    assert names(outcomes.run("damaged_here_only")) == [f"damaged-{THIRD}", FIRST, SECOND, THIRD]
    check_restored(outcomes, "run_gone", 3, "copied")
    assert names(outcomes.run("run_gone")) == [THIRD]
    check_restored(outcomes, "copy_damaged", 2, "copied")
    assert (outcomes.store("copy_damaged") / THIRD / "damaged-manifest.json").exists()


def test_written_straight_to_a_store(outcomes: Outcomes) -> None:
    assert names(outcomes.run("from_straight")) == []
    left = [name for name in names(outcomes.store("straight")) if any((outcomes.store("straight") / name).iterdir())]
    assert left == [FIRST, SECOND, THIRD]
    wrote = outcomes.saved["straight"][0]["losses"][3:]
    assert outcomes.restored["from_straight"][0]["losses"] == pytest.approx(wrote, rel=1e-5)
