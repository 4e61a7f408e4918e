"""The loss on held-out clips: what it is, that every layout finds the same, and that training does not notice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megavideo.parity.spec import ParitySpec
from megavideo.testing.ranks import run_ranks
from megavideo.train.validation.held_out_packs import SizeClass, middle_levels
from tests.train.validation_cases import GRIDS, LEVELS, pixels, run_layouts

TWO = ("tp2-sp", "pp2-zero1", "dp2-zero3")
MORE_ON_TWO = ("cp2-ring", "dp2-zero1")
FOUR = ("tp2-sp-pp2", "cp2-ring-dp2-zero3", "cp2-ring-pp2-dualpipev", "dp4-zero1", "tp2-dp2-zero2")
SPEC = ParitySpec(packs_per_step=4, steps=2)

Accounts = dict[str, list[dict[str, Any]]]


def accounts(layouts: tuple[str, ...], processes: int, folder: Path) -> Accounts:
    """What each rank tells of each layout."""
    ranks = run_ranks(run_layouts, (SPEC, layouts), folder, processes=processes)
    return {layout: [rank[layout] for rank in ranks] for layout in layouts}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return accounts(("zero0",), 1, tmp_path_factory.mktemp("one"))["zero0"][0]


def check(found: list[dict[str, Any]], one: dict[str, Any]) -> None:
    for rank in found:
        assert rank["mixed"] == rank["plain"]  # to the last bit
        assert rank["same_again"]
        assert "the shard is gone" in rank["error"]
        assert len(rank["rows"]) == len(one["rows"]) == SPEC.steps
        for mine, theirs in zip(rank["rows"], one["rows"], strict=True):
            assert numbers(mine) == pytest.approx(numbers(theirs), rel=1e-5)
    told = [rank["error"] for rank in found if "rank" in rank["error"]]
    assert len(told) == len(found) - 1  # all but the one that met it name it


def numbers(row: dict[str, Any]) -> list[float]:
    cells = [cell[name] for cell in row["cells"] for name in ("level", "area", "frames", "loss", "loss_ema", "count")]
    return [row["loss"], row["loss_ema"], *row["levels"], *row["by_level"], *row["by_level_ema"], *cells]


def test_it_is_the_mean_error_of_the_clips(one: dict[str, Any]) -> None:
    row, reference = one["rows"][-1], one["reference"]
    fitting = [i for i, grid in enumerate(GRIDS) if grid.num_tokens // 4 <= SPEC.tokens]
    assert len(fitting) == len(GRIDS) - 1
    classes = [SizeClass.of(pixels(GRIDS[i])) for i in fitting]
    for kind, name, by_level in (("weights", "loss", "by_level"), ("averages", "loss_ema", "by_level_ema")):
        levels = []
        for number in range(LEVELS):
            clips = [reference[kind][number][i] for i in fitting]
            levels.append(sum(error for error, _ in clips) / sum(tokens for _, tokens in clips))
            cells = [cell for cell in row["cells"] if cell["level"] == row["levels"][number]]
            assert [(cell["area"], cell["frames"]) for cell in cells] == [
                (size.area, size.frames) for size in sorted(set(classes))
            ]
            for cell, size in zip(cells, sorted(set(classes)), strict=True):
                inside = [clip for clip, other in zip(clips, classes, strict=True) if other == size]
                assert cell["count"] == len(inside)
                expected = sum(error for error, _ in inside) / sum(tokens for _, tokens in inside)
                assert cell[name] == pytest.approx(expected, rel=1e-5)
        assert row[by_level] == pytest.approx(levels, rel=1e-5)
        assert row[name] == pytest.approx(sum(levels) / LEVELS, rel=1e-5)
    assert row["loss"] != row["loss_ema"]
    json.dumps(row)


def test_what_it_costs(one: dict[str, Any]) -> None:
    # three packs at three levels, by weights and average, beside four packs forward and backward
    assert one["cost_steps"] == pytest.approx(3 * LEVELS * 2 / (4 * 3))


def test_on_two_processes(one: dict[str, Any], tmp_path: Path) -> None:
    for layout, found in accounts(TWO, 2, tmp_path).items():
        print(layout)
        check(found, one)


@pytest.mark.slow
def test_on_more_of_two_processes(one: dict[str, Any], tmp_path: Path) -> None:
    for layout, found in accounts(MORE_ON_TWO, 2, tmp_path).items():
        print(layout)
        check(found, one)


@pytest.mark.slow
def test_on_four_processes(one: dict[str, Any], tmp_path: Path) -> None:
    for layout, found in accounts(FOUR, 4, tmp_path).items():
        print(layout)
        check(found, one)


def test_size_classes() -> None:
    assert SizeClass.of((1, 256, 256)) == SizeClass(256 * 256, 1)
    assert SizeClass.of((17, 256, 256)) == SizeClass(256 * 256, 17)
    assert SizeClass.of((81, 480, 832)) == SizeClass(2**19, 129)
    assert SizeClass.of((5, 480, 832)) < SizeClass.of((81, 720, 1280))
    assert middle_levels(4, None) == (0.125, 0.375, 0.625, 0.875)
    assert middle_levels(2, (0.875, 1.0)) == (0.90625, 0.96875)
