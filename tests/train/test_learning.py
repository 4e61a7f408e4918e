"""Runs learn: two samples are learnt by heart, and every objective trains."""

from __future__ import annotations

import statistics

import pytest

from tests.train.conftest import Place, Runs


@pytest.mark.parametrize(("name", "share"), [("learning", 0.6), pytest.param("ddpm", 0.6, marks=pytest.mark.slow)])
def test_two_samples_are_learnt(place: Place, on_one: Runs, name: str, share: float) -> None:
    assert on_one[name]
    losses = place.losses(name)
    print(f"{name}: {losses[0]:.3f} -> {statistics.fmean(losses[-10:]):.3f}")
    assert statistics.fmean(losses[-10:]) < share * statistics.fmean(losses[:3])


@pytest.mark.parametrize("name", ["ddpm_v", "conditions"])
def test_other_settings_train(place: Place, on_one: Runs, name: str) -> None:
    (outcome,) = on_one[name]
    assert outcome.report and outcome.report["skipped"] == 0
    assert len(place.losses(name)) == 8


def test_a_run_folder_holds_all_it_leaves(place: Place, on_one: Runs) -> None:
    assert on_one["learning"]
    folder = place.run("learning")
    for name in ("config.yaml", "code_version.json", "metrics.jsonl", "dataset.json", "sampling.json",
                 "pictures/loss.png", "encoders/encoders.json", "checkpoints/step_00000060/manifest.json"):  # fmt: skip
        assert (folder / name).is_file(), name
    row = place.rows("learning")[5]
    assert {"step", "loss", "grad_norm", "learning_rate", "skipped", "epoch", "tokens", "fill", "tokens_per_second",
            "seconds", "mfu", "flops", "spike", "stage", "host_memory_gb", "device_memory_gb",
            } == {name for name in row if not name.startswith("stream_")}  # fmt: skip
    assert row["stream_samples_per_second"] >= 0 and row["stream_hits"] > 0 and row["stream_retries"] == 0
    assert row["learning_rate"] == 4e-3 and row["fill"] == row["tokens"] / 16
