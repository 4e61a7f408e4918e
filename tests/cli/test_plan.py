"""`megavideo plan` on the command line: what it tells, to people and to programs, and how soon."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megavideo.cli.main import main
from megavideo.config.find import configs_folder, group_options
from megavideo.planning.measured import PUBLISHED


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    main(["plan", *words, "--json"])
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_parts_of_a_report_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    (stage,) = told(capsys, "run=wan_14b", "cluster=h100_ib", 'words=["layout=tp4-sp-zero1"]')["stages"]  # type: ignore[misc]
    assert stage["fits"] and stage["would_fit"] == []
    assert sum(stage["memory_bytes"].values()) == stage["memory_moments"]["forward and backward"]
    assert max(stage["memory_moments"].values()) == stage["memory_peak"] < 80e9
    assert sum(stage["seconds"].values()) == pytest.approx(stage["step_seconds"])
    assert stage["tokens_per_second"] == pytest.approx(64 * 75_600 / stage["step_seconds"])
    assert stage["gpu_hours"] == pytest.approx(100_000 * stage["step_seconds"] * 256 / 3600)
    assert stage["parameters"] == 14_288_491_584 and 0.1 < stage["mfu"] < 0.6
    assert any("fa3" in text for text in stage["assumed"])


def test_what_does_not_fit_says_so_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "run=wan_14b", "cluster=h100_ib"]) == 1
    out = capsys.readouterr().out
    assert "DOES NOT FIT" in out and "fewest changes" in out and "layout=tp4-sp-zero1" in out
    assert "train.packs_per_step=256 in place of 64" in out
    assert all(len(line) <= 132 for line in out.splitlines())


@pytest.mark.parametrize("name", list(group_options(configs_folder(), "run")))
def test_every_preset_is_planned(capsys: pytest.CaptureFixture[str], name: str) -> None:
    (stage,) = told(capsys, f"run={name}", "cluster=h100_ib", "cluster.nodes=1")["stages"]  # type: ignore[misc]
    assert stage["step_seconds"] > 0 and stage["memory_peak"] > 0


def test_every_stage_of_a_curriculum_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    stages = told(capsys, "run=wan_14b", "curriculum=sora", "cluster=h100_ib")["stages"]
    assert [stage["stage"] for stage in stages] == [  # type: ignore[index, attr-defined]
        "images_256", "short_256", "medium_512", "long_1024", "multimodal",
    ]  # fmt: skip
    (one,) = told(capsys, "run=wan_14b", "curriculum=sora", "stage=long_1024")["stages"]  # type: ignore[misc]
    assert one == stages[3]  # type: ignore[index]


def test_chips_without_a_measured_row_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "run=wan_1b", "cluster=h100_ib", "cluster.chip=gb200", "cluster.gpus_per_node=4"])
    assert "uncalibrated" in capsys.readouterr().out


def test_a_table_is_scored_beside_three_baselines(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "--validate", str(PUBLISHED))["validation"]
    errors = found["errors"]  # type: ignore[index]
    assert set(errors) == {"all", "dit", "lm"}
    assert errors["all"]["model"]["mean"] < 0.5 * errors["all"]["fitted share of roofline"]["mean"]
    assert set(errors["all"]) == {"model", "constant 43 % MFU", "half of roofline", "fitted share of roofline"}
    assert main(["plan", "--validate", str(PUBLISHED)]) == 0
    assert "Megatron 314B" in capsys.readouterr().out


def test_a_calibration_gives_words_for_the_next_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = PUBLISHED.read_text().splitlines()
    table = tmp_path / "own.csv"
    table.write_text("\n".join(row for row in rows if row.startswith(("name", "MPT"))))
    assert main(["plan", "--calibrate", str(table)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    words = first.removeprefix("constants: ").split()
    assert [word.partition("=")[0] for word in words] == [
        "speeds.products", "speeds.attention", "speeds.elements", "speeds.exposed",
    ]  # fmt: skip
    main(["plan", "run=wan_1b", "cluster.nodes=1", *words])
    assert "tokens/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ([], "take a preset"),
        (["run=wan_1b", "cluster=default"], "take cluster.chip= one of"),
        (["run=wan_1b", "cluster=laptop_test"], "take another cluster"),
        (["run=wan_1b", 'words=["layout=tp5"]'], "tp5 must divide"),
        (["run=wan_1b", "cluster.nodes=3", 'words=["layout=tp2-sp-dp4-zero1"]'], "needs 8 GPUs"),
        (["--validate", "none.csv"], "none.csv"),
    ],
)
def test_faults_are_told_in_one_line(capsys: pytest.CaptureFixture[str], words: list[str], remedy: str) -> None:
    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert remedy in error and len(error.splitlines()) == 1


def test_planning_needs_no_torch_and_next_to_no_time() -> None:
    code = (
        "import sys, time; begin = time.process_time(); "
        "import megavideo.planning.stage_plan; "
        "print(time.process_time() - begin, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    seconds, torch, numpy = out.split()
    assert float(seconds) < 0.3 and torch == "False" and numpy == "False"
