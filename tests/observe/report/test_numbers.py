"""Metrics as columns, curves that keep what they leave out, and the numbers of stages against counts by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megavideo.observe.metrics import MetricsWriter
from megavideo.observe.report.numbers import changed_settings, saves_of, stage_numbers, whole_run
from megavideo.observe.report.series import Series, curve, curves_by_stage, read_series
from megavideo.observe.stages import StageRow


def _series(path: Path) -> Series:
    """Ten steps of stage a and ten of b; step 3 is skipped, and b tells what a did not."""
    with MetricsWriter(path) as writer:
        for step in range(1, 21):
            values = {
                "loss": float("nan") if step == 3 else float(step),
                "skipped": step == 3,
                "tokens": 100,
                "seconds": 1.0 if step <= 10 else 4.0,
                "mfu": 0.4 if step <= 10 else 0.2,
                "stage": "a" if step <= 10 else "b",
                "stream_wait_seconds": 0.5,
            }
            later = {"device_memory_gb": step / 2, "saved_blocked_seconds": 0.25} if step in (15, 20) else {}
            passed = {"loss": None, "skipped": True, "passed_over": True, "stage": "b"}  # such a step has no more
            writer.write(step, passed if step == 17 else values | later)
    return read_series(path)


def test_columns_where_fields_come_and_go(tmp_path: Path) -> None:
    series = _series(tmp_path / "metrics.jsonl")
    assert series.steps.tolist() == list(range(1, 21))
    assert series.stages == (("a", 0, 10), ("b", 10, 20))
    assert np.isnan(series.column("loss")).tolist() == [step in (3, 17) for step in range(1, 21)]
    assert np.flatnonzero(np.isfinite(series.column("device_memory_gb"))).tolist() == [14, 19]
    assert series.has("mfu") and not series.has("unknown") and len(series.column("unknown")) == 20
    assert series.applied().tolist() == [step not in (3, 17) for step in range(1, 21)]


def test_a_file_without_rows(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("rubbish\n")
    for path, damaged in ((tmp_path / "metrics.jsonl", 1), (tmp_path / "missing", 0)):
        series = read_series(path)
        assert (len(series), series.stages, series.damaged) == (0, (), damaged)
        assert stage_numbers(series, (), (), ()) == () and whole_run(series, None, (), ()) is None


def test_long_curves_keep_their_extremes_and_mean() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=50_000)
    values[777], values[40_000] = 9.0, np.nan
    points = curve(np.arange(50_000), values)
    assert len(points.mean) == 1200
    assert points.high.max() == 9.0 and points.low.min() == np.nanmin(values)
    assert points.mean.mean() == pytest.approx(np.nanmean(values), abs=1e-3)
    assert np.all(np.diff(points.steps) > 0)


def test_stages_do_not_join(tmp_path: Path) -> None:
    series = _series(tmp_path / "metrics.jsonl")
    first, second = curves_by_stage(series, series.column("loss"))
    assert first.steps.tolist() == [1, 2, 4, 5, 6, 7, 8, 9, 10] and second.steps[0] == 11
    (only,) = curves_by_stage(series, series.column("device_memory_gb"))
    assert only.mean.tolist() == [7.5, 10.0]


def test_numbers_of_stages_by_hand(tmp_path: Path) -> None:
    series = _series(tmp_path / "metrics.jsonl")
    stages = (StageRow("a", 1, 2, 1, 10, 10, "dp1"), StageRow("b", 2, 2, 11, None, 50, "dp2-zero1"))
    validations = [{"step": 10, "loss": 5.5}, {"step": 20, "loss": 15.5, "loss_ema": 15.0}]
    faults = [{"step": 3, "kind": "non_finite"}, {"step": 12, "kind": "straggler"}, {"step": 13, "kind": "straggler"}]
    first, second = stage_numbers(series, stages, validations, faults)
    assert (first.first_step, first.last_step, first.tokens, first.seconds) == (1, 10, 1000.0, 10.0)
    assert (first.loss_first, first.loss_last, first.skipped, first.passed_over) == (1.0, 10.0, 1, 0)
    assert (second.skipped, second.passed_over, second.tokens, second.seconds) == (0, 1, 900.0, 36.0)
    assert (first.validation, first.validation_ema) == (5.5, None)
    assert (first.tokens_per_second, first.wait_share) == (100.0, pytest.approx(0.5))
    assert (first.faults, first.saves, first.device_memory_gb) == ({"non_finite": 1}, 0, None)
    assert (second.last_step, second.planned_steps, second.layout) == (20, 50, "dp2-zero1")
    assert (second.faults, second.saves, second.blocked_seconds) == ({"straggler": 2}, 2, 0.5)
    assert (second.tokens_per_second, second.device_memory_gb, second.validation_ema) == (25.0, 10.0, 15.0)
    whole = whole_run(series, 60, validations, faults)
    assert whole is not None and whole.mfu == pytest.approx((10 * 0.4 + 36 * 0.2) / 46)
    assert (whole.loss_first, whole.loss_last, whole.planned_steps) == (1.0, 20.0, 60)
    assert [(save.step, save.blocked_seconds) for save in saves_of(series)] == [(14, 0.25), (19, 0.25)]


def test_stages_by_the_names_in_the_metrics(tmp_path: Path) -> None:
    found = stage_numbers(_series(tmp_path / "metrics.jsonl"), (), (), ())
    assert [(stage.name, stage.first_step, stage.last_step) for stage in found] == [("a", 1, 10), ("b", 11, 20)]


def test_changed_settings() -> None:
    before = {"optim": {"lr": 1e-3, "betas": [0.9, 0.95]}, "layout": "dp1", "gone": 1}
    after = {"optim": {"lr": 5e-4, "betas": [0.9, 0.95]}, "layout": "dp1", "new": {"a": 1}}
    changes = [(change.setting, change.before, change.after) for change in changed_settings(before, after)]
    assert changes == [("gone", 1, None), ("new", None, {"a": 1}), ("optim.lr", 1e-3, 5e-4)]
