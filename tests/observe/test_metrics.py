"""The metrics file: flushed rows, no duplicates after a kill, sinks fed, damage reported."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from megavideo.errors import ConfigError, DataError
from megavideo.observe.metrics import MetricsWriter, read_metrics
from megavideo.observe.tensorboard import TensorBoardSink
from megavideo.observe.wandb import WandbSink


class _Recorder:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.closed = False

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self.rows.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


def test_rows_are_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    writer = MetricsWriter(path)
    writer.write(1, {"loss": 0.5, "skipped": ["a"], "note": None})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 0.5, "skipped": ["a"], "note": None}
    ]
    writer.close()


def test_numbers_that_json_lacks(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(1, {"loss": float("nan"), "norms": [float("inf"), 1.0], "deep": {"x": float("-inf")}})
        writer.write(2, {"loss": np.float32(0.25), "count": np.int64(3)})
    assert read_metrics(path) == [
        {"step": 1, "loss": None, "norms": [None, 1.0], "deep": {"x": None}},
        {"step": 2, "loss": 0.25, "count": 3},
    ]


def test_resume_leaves_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        for step in range(1, 8):
            writer.write(step, {"loss": step / 10})
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # the kill
    assert [row["step"] for row in read_metrics(path)] == list(range(1, 8))
    with MetricsWriter(path, resume_step=4) as writer:
        assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]
        writer.write(5, {"loss": 9.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(path)][3:] == [(4, 0.4), (5, 9.0)]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resume_with_nothing_to_drop_keeps_the_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(1, {"loss": 0.1})
    before = path.stat().st_ino
    MetricsWriter(path, resume_step=1).close()
    assert path.stat().st_ino == before


def test_a_whole_last_row_without_its_line_end_is_not_glued_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}')
    with MetricsWriter(path, resume_step=2) as writer:
        writer.write(3, {"loss": 0.3})
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]


def test_damage_and_absence_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(DataError, match="no metrics file"):
        read_metrics(path)
    path.write_text('{"step": 1}\nrubbish\n{"step": 3}\n')
    with pytest.raises(DataError, match="line 2"):
        read_metrics(path)


def test_a_restart_goes_on_past_damage_and_tells_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nrubbish\n{"step": 3}\n')
    MetricsWriter(path, resume_step=3).close()
    assert [row["step"] for row in read_metrics(path)] == [1, 3]
    assert "1 damaged lines were dropped; the first was line 2" in caplog.text


def test_sinks_get_every_row(tmp_path: Path) -> None:
    sink = _Recorder()
    with MetricsWriter(tmp_path / "metrics.jsonl", sinks=[sink]) as writer:
        writer.write(1, {"loss": 0.5})
    assert sink.rows == [(1, {"loss": 0.5})] and sink.closed


def test_tensorboard_events(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricsWriter(tmp_path / "metrics.jsonl", sinks=[TensorBoardSink(tmp_path / "tb")]) as writer:
        writer.write(1, {"loss": 0.5, "note": "text", "bad": float("nan")})
        writer.write(2, {"loss": 0.25})
    events = accumulator.EventAccumulator(str(tmp_path / "tb")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


def test_wandb_is_sent_samples_beside_the_newest_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for the package, which is not installed here: W&B takes no row of a step before the newest."""
    sent: list[tuple[int, dict[str, Any]]] = []
    run = SimpleNamespace(log=lambda values, step: sent.append((step, values)), finish=lambda: None)
    package = SimpleNamespace(
        init=lambda **_: run, Error=RuntimeError, Image=lambda pixels, caption: (pixels.shape, caption)
    )
    monkeypatch.setitem(sys.modules, "wandb", package)
    with MetricsWriter(tmp_path / "metrics.jsonl", sinks=[WandbSink("p", "n", tmp_path, {}), _Recorder()]) as writer:
        writer.write(7, {"loss": 0.5})
        writer.write_samples(5, np.zeros((4, 6, 3), np.uint8))
    assert sent == [(7, {"loss": 0.5}), (7, {"samples": ((4, 6, 3), "step 5")})]


def test_the_id_at_wandb_belongs_to_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids: list[str] = []
    package = SimpleNamespace(init=lambda id, **_: ids.append(id), Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", package)
    WandbSink("p", "n", tmp_path / "run", {})
    WandbSink("p", "n", tmp_path / "run", {})
    (tmp_path / "run").rename(tmp_path / "moved")
    WandbSink("p", "n", tmp_path / "moved", {})
    WandbSink("p", "n", tmp_path / "run", {})  # another run at the same path
    assert ids[0] == ids[1] == ids[2] != ids[3]
    (tmp_path / "run" / "wandb_id").write_text("../x")
    with pytest.raises(DataError, match="wandb_id: holds no id"):
        WandbSink("p", "n", tmp_path / "run", {})


def test_missing_packages_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"observe\.wandb.*pip install wandb"):
        WandbSink("project", "name", tmp_path, {})
    with pytest.raises(ConfigError, match=r"observe\.tensorboard.*pip install tensorboard"):
        TensorBoardSink(tmp_path)
