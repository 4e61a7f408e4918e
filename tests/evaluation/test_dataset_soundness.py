"""Datasets that are whole by their hashes, and on which training or sampling could only fail."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megavideo.cli.main import main
from megavideo.config.schema.doctor import DoctorRun
from megavideo.data.dataset.dataset import NULL_TEXT_NAME, checksum, null_text_bytes, open_dataset
from megavideo.data.plan.packing import PackLimits
from megavideo.data.plan.step_plan import PlanSettings, StepPlan
from megavideo.data.plan.visits import seen_again
from megavideo.data.table.open import open_samples
from megavideo.data.table.sample_table import make_table
from megavideo.data.table.sound import check_sound
from megavideo.errors import DataError
from megavideo.evaluation.dataset_check import check_dataset
from megavideo.evaluation.dataset_report import DatasetReport
from megavideo.testing.dataset import TEXT_DIM, write_dataset
from megavideo.types import Grid, SampleInfo

NUM_SAMPLES = 40
PACKS = {"tokens_per_pack": 64, "text_tokens_per_pack": 512, "packs_per_step": 2, "steps": 10}
TRAIN = (
    "train", "run=micro", "train.steps=2", "optim.warmup_steps=1", "observe.tensorboard=false",
    "data.tokens_per_pack=128", "data.text_tokens_per_pack=256", "model.latent_channels=4", "model.text_dim=32",
)  # fmt: skip


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "dataset"
    write_dataset(str(folder), NUM_SAMPLES)
    return folder


@pytest.fixture
def spoilt(healthy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "spoilt"))


def look(folder: Path, **settings: object) -> DatasetReport:
    return check_dataset(DoctorRun(data=str(folder), **(PACKS | settings)))  # type: ignore[arg-type]


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Change a small file, and have the dataset say that it is right."""
    (folder / name).write_bytes(data)
    for description in ("dataset.json", "dataset_v1.json"):
        info = json.loads((folder / description).read_bytes())
        info["checksums"][name] = checksum(data)
        (folder / description).write_text(json.dumps(info))


def with_null_text(folder: Path, value: float, count: int = 3) -> None:
    text = np.zeros((2, TEXT_DIM), np.float16)
    text.flat[:count] = value
    rewrite(folder, NULL_TEXT_NAME, null_text_bytes(text))


def with_row(folder: Path, sample: int, change: Callable[[dict[str, object]], None]) -> None:
    lines = (folder / "manifest_v1.jsonl").read_text().splitlines()
    row = json.loads(lines[sample])
    change(row)
    lines[sample] = json.dumps(row)
    rewrite(folder, "manifest_v1.jsonl", ("\n".join(lines) + "\n").encode())


def test_a_healthy_one_has_neither_faults_nor_warnings(healthy: Path) -> None:
    report = look(healthy)
    assert (report.faults, report.warnings) == ((), ())
    assert report.shards.latents is not None
    assert abs(report.shards.latents.mean) < 0.1 and report.shards.latents.std == pytest.approx(1.0, abs=0.05)
    assert len(report.shards.latents.channel_std) == 4
    unread = look(healthy, check_hashes=False).shards
    assert (unread.latents, unread.constant, unread.non_finite_text) == (None, None, None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_empty_caption_that_is_not_finite_is_named(spoilt: Path, value: float) -> None:
    """Training would die after some steps, with the names of innocent samples."""
    with_null_text(spoilt, value)
    (fault,) = look(spoilt, check_hashes=False).faults
    assert f"{spoilt}/{NULL_TEXT_NAME}: 3 of 64 values of the empty caption's encoding are not finite" in fault
    dataset = open_dataset(str(spoilt))
    with pytest.raises(DataError, match="empty caption"):
        check_sound(dataset, open_samples(dataset))


def test_training_names_it_before_the_first_step(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_null_text(spoilt, math.nan)
    assert main([*TRAIN, f"data.uri={spoilt}", f"output={tmp_path / 'runs'}"]) == 2
    told = capsys.readouterr().err
    assert NULL_TEXT_NAME in told and "sample-" not in told and "Traceback" not in told
    assert not list((tmp_path / "runs").rglob("metrics.jsonl"))


@pytest.mark.parametrize("fps", [0, -8.0, math.nan, math.inf])
def test_a_frame_rate_that_is_none(spoilt: Path, fps: float) -> None:
    with_row(spoilt, 7, lambda row: row.update(fps=fps))
    with pytest.raises(DataError, match=r"line 8: fps"):
        look(spoilt, check_hashes=False)
    with pytest.raises(DataError, match=r"line 8: fps"):
        open_samples(open_dataset(str(spoilt)))


def test_a_latent_of_no_values(spoilt: Path) -> None:
    with_row(spoilt, 7, lambda row: row.update(latent=[0, 0, 0]))
    with pytest.raises(DataError, match=r"sample-7 \(latent \[0, 0, 0\]"):
        look(spoilt, check_hashes=False)
    dataset = open_dataset(str(spoilt))
    with pytest.raises(DataError, match="sample-7"):
        check_sound(dataset, open_samples(dataset))


@pytest.mark.parametrize(
    ("name", "value"),
    [("patch", [0, 0, 0]), ("patch", [1, 0, 2]), ("patch", [-1, 2, 2]), ("time_ratio", 0), ("text_dim", 0)],
)  # fmt: skip
def test_sizes_that_cannot_be(spoilt: Path, name: str, value: object) -> None:
    info = json.loads((spoilt / "dataset.json").read_bytes())
    (spoilt / "dataset.json").write_text(json.dumps(info | {name: value}))
    with pytest.raises(DataError, match=r"dataset\.json: damaged"):
        open_dataset(str(spoilt))


def test_missing_encoders_are_a_warning(spoilt: Path) -> None:
    shutil.rmtree(spoilt / "encoders")
    report = look(spoilt, check_hashes=False)
    assert report.faults == () and len(report.warnings) == 1
    assert "encoders/encoders.json is missing: training works without, and its samples cannot be" in report.warnings[0]


def made(folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], None]) -> DatasetReport:
    """The report on a dataset whose latents were changed in place before they were written."""
    from megavideo.testing import dataset

    class Writer:
        def __init__(self, inner: dataset.ShardWriter) -> None:
            self.inner = inner

        def add(self, sample: SampleInfo, latent: np.ndarray, *given: Any) -> None:
            change(latent)
            self.inner.add(sample, latent, *given)

    shards_in = dataset._shards_in
    from contextlib import contextmanager

    @contextmanager
    def changed(*given):  # type: ignore[no-untyped-def]
        with shards_in(*given) as (writer, shards):
            yield Writer(writer), shards

    monkeypatch.setattr(dataset, "_shards_in", changed)
    write_dataset(str(folder), NUM_SAMPLES)
    return look(folder)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_latents_of_one_value_are_nothing_to_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    report = made(tmp_path / "data", monkeypatch, lambda latent: latent.fill(value))
    assert report.shards.constant == NUM_SAMPLES
    assert any(f"all {NUM_SAMPLES} latents are constant" in fault for fault in report.faults)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda latent: np.multiply(latent, 30, out=latent), "standard deviation 30"),
        (lambda latent: np.add(latent, 9, out=latent), "mean 9"),
        (lambda latent: latent[2].fill(0.5), "channels [2] of 4 of the latents are constant"),
    ],
)
def test_statistics_that_are_strange_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], None], message: str
) -> None:
    report = made(tmp_path / "data", monkeypatch, change)
    assert report.faults == () and len(report.warnings) == 1
    assert message in report.warnings[0]


def test_captions_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megavideo.encoders.text.bytes_text import BytesTextEncoder

    encode = BytesTextEncoder.encode

    def broken(self, texts):  # type: ignore[no-untyped-def]
        encoded = encode(self, texts)
        if texts[0].startswith("a red"):
            encoded[0][0, 0] = math.nan
        return encoded

    monkeypatch.setattr(BytesTextEncoder, "encode", broken)
    write_dataset(str(tmp_path), NUM_SAMPLES)
    report = look(tmp_path)
    assert report.shards.non_finite_text == NUM_SAMPLES / 5 and report.shards.non_finite == 0
    (fault,) = report.faults
    assert "8 samples have an encoded caption with a value that is not finite: sample-0, sample-5" in fault


def plan_of(samples: int, packs_per_step: int) -> StepPlan:
    grid = Grid(1, 8, 8)
    table = make_table(SampleInfo(f"s{i}", i, grid, 4, 8.0, "c", "f") for i in range(samples))
    return StepPlan(table, PlanSettings((1, 2, 2), PackLimits(64, 64, 16, 1), packs_per_step, 0))


def test_three_clips_under_eight_packs_are_told() -> None:
    """A pack holds four."""
    told = seen_again(plan_of(3, 8), 3, 8, "train.packs_per_step")
    assert told is not None and "3 samples fill 0.75 packs" in told and "take train.packs_per_step=1" in told
    assert "each sample is seen 10.6 times within one update" in told
    assert seen_again(plan_of(32, 8), 32, 8, "packs_per_step") is None
    assert seen_again(plan_of(1000, 8), 1000, 8, "packs_per_step") is None


def test_the_command_tells_warnings_and_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(str(tmp_path / "data"), 3)
    words = ["doctor", f"data={tmp_path / 'data'}", "tokens_per_pack=64", "text_tokens_per_pack=512"]
    assert main([*words, "packs_per_step=8", f"out={tmp_path / 'out'}"]) == 0
    told = capsys.readouterr().out
    assert "WARNING: 3 samples fill " in told and "times within one update. Remedy: take packs_per_step=" in told
    assert "each sample is seen " in told and "within one update" in (tmp_path / "out" / "report.html").read_text()
