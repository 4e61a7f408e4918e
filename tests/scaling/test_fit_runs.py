"""Points from run folders, as training leaves them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from megavideo.config.dump import to_yaml
from megavideo.config.load import load
from megavideo.config.schema.train import TrainRun
from megavideo.errors import DataError
from megavideo.planning.parameters import num_parameters
from megavideo.scaling.runs import read_run, read_runs

WORDS = ("run=micro", "data.uri=made", "train.steps=4", "optim.warmup_steps=1", "validation.every=2")
STEPS = 4


@pytest.fixture(scope="module")
def config() -> TrainRun:
    return load(TrainRun, "train", WORDS)


def write_run(root: Path, config: TrainRun, *, width: int = 64, loss: float | None = 1.5, steps: int = STEPS) -> Path:
    """A run of four steps of 100 tokens, of which the second was not applied."""
    root.mkdir(parents=True)
    config = replace(config, name=root.name, model=replace(config.model, width=width, ffn=4 * width))
    (root / "config.yaml").write_text(to_yaml(config))
    rows = [{"step": step, "tokens": 100, "flops": 7.0 * width, "skipped": step == 2} for step in range(1, steps + 1)]
    (root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured = [
        {"step": 2, "stage": "", "loss": 9.0, "loss_ema": 9.5},
        {"step": STEPS, "stage": "", "loss": loss, "loss_ema": 1.25, "levels": [0.25, 0.75], "by_level": [1.0, 2.0],
         "by_level_ema": [0.5, 2.0]},
    ]  # fmt: skip
    (root / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in measured))
    return root


def test_what_a_run_tells(tmp_path: Path, config: TrainRun) -> None:
    run = read_run(write_run(tmp_path / "a", config), "raw", None)
    assert run is not None
    assert (run.tokens, run.flops, run.loss, run.batch_tokens) == (300, 3 * 7.0 * 64, 1.5, 100.0)
    assert run.params == num_parameters(config.model) and run.learning_rate == config.optim.lr
    for weights, level, loss in (("ema", None, 1.25), ("raw", 0.3, 1.0), ("raw", 1.0, 2.0), ("ema", 0.0, 0.5)):
        found = read_run(tmp_path / "a", weights, level)
        assert found is not None and found.loss == loss


def test_a_folder_of_runs(tmp_path: Path, config: TrainRun, caplog: pytest.LogCaptureFixture) -> None:
    for number, width in enumerate((32, 64, 128)):
        write_run(tmp_path / f"w{number}", config, width=width, loss=2.0 - 0.1 * number)
    write_run(tmp_path / "young", config, steps=3)
    with caplog.at_level("WARNING"):
        points = read_runs(tmp_path, "raw", None)
    assert points.loss.tolist() == [2.0, 1.9, 1.8] and points.flops.tolist() == [21.0 * 32, 21.0 * 64, 21.0 * 128]
    assert "young: left out, as it stands at step 3 of 4" in caplog.text
    assert points.learning_rate is not None and points.batch_tokens is not None


def test_runs_that_give_no_point(tmp_path: Path, config: TrainRun) -> None:
    root = write_run(tmp_path / "runs" / "a", config)
    write_run(tmp_path / "runs" / "b", replace(config, validation=replace(config.validation, clips=3)))
    with pytest.raises(DataError, match="measured on other clips or noise"):
        read_runs(tmp_path / "runs", "raw", None)
    shutil.rmtree(tmp_path / "runs" / "b")
    with pytest.raises(DataError, match="no finite loss by weights=raw"):
        read_runs(write_run(tmp_path / "nan", config, loss=None), "raw", None)
    (root / "validation.jsonl").write_text('{"step": 2, "loss": 1.0}\n')
    with pytest.raises(DataError, match="last validated at step 2, and ended at step 4"):
        read_runs(root, "raw", None)
    (root / "validation.jsonl").unlink()
    with pytest.raises(DataError, match="never validated"):
        read_runs(root, "raw", None)
    (root / "metrics.jsonl").write_text('{"step": 4, "tokens": 100}\n')
    with pytest.raises(DataError, match="no FLOPs"):
        read_runs(root, "raw", None)
    (root / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="no finished run"):
        read_runs(root, "raw", None)
