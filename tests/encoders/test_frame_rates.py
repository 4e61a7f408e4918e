"""Clips of many rates encoded at one: which frames are shown, and what is said of it."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megavideo.config.schema.clip_filters import CutsConfig, FiltersConfig
from megavideo.config.schema.doctor import DoctorRun
from megavideo.config.schema.prepare import AutoencoderConfig, EncodeRun, IngestRun, TextEncoderConfig
from megavideo.data.clips.resample import Resampling
from megavideo.data.dataset.dataset import DroppedClip, open_dataset
from megavideo.data.dataset.rates import FrameCounts, RateCount, Rates
from megavideo.data.ingest import ClipRow, ingest, read_clip_list
from megavideo.encoders.encode.clips import ClipLimits, ClipSource, read_clip
from megavideo.encoders.encode.run import encode
from megavideo.errors import ConfigError, DataError
from megavideo.evaluation.dataset_check import check_dataset
from megavideo.evaluation.dataset_page import rows_of
from tests.data.clip_files import write_captions, write_clip

PCA = AutoencoderConfig(kind="pca", channels=16, fit_clips=8)
BYTES = TextEncoderConfig(kind="bytes", dim=64, max_tokens=6)
ALL = FiltersConfig(min_seconds=0.0, min_change=None, duplicate_bits=None)


def numbered(frames: int) -> np.ndarray:
    """Frames whose brightness tells their numbers, up to 60, uint8 [T, 32, 32, 3]."""
    return np.broadcast_to((4 * np.arange(frames, dtype=np.uint8))[:, None, None, None], (frames, 32, 32, 3)).copy()


def numbers(pixels: np.ndarray) -> list[int]:
    """The numbers of such frames."""
    return np.rint(pixels.mean(axis=(1, 2, 3)) / 4).astype(int).tolist()


def listed(src: Path, out: Path, names: list[str]) -> dict[str, ClipRow]:
    write_captions(src, {name: f"clip {name}" for name in names})
    ingest(IngestRun(src=str(src), out=str(out), cuts=CutsConfig(enabled=False), filters=ALL))
    return {row.file: row for row in read_clip_list(out).rows}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of 24, 60, 8, 3 and of changing rates, a very short one, and an image."""
    folder = tmp_path_factory.mktemp("rates")
    src = folder / "src"
    src.mkdir()
    write_clip(src / "film.mp4", numbered(49), fps=24)
    write_clip(src / "fast.mkv", numbered(60), fps=60)
    write_clip(src / "held.mp4", numbered(17), fps=8)
    write_clip(src / "slow.mp4", numbered(7), fps=3)
    times = [50 * number for number in range(20)] + [1000 + 100 * number for number in range(12)]
    write_clip(src / "varying.mkv", numbered(32), times=times)
    write_clip(src / "short.mp4", numbered(3), fps=24)
    Image.fromarray(numbered(30)[29]).save(src / "image.png")
    listed(src, folder / "list", [path.name for path in src.iterdir() if path.suffix in (".mp4", ".mkv", ".png")])
    return folder / "list"


@pytest.fixture
def clips(made: Path, tmp_path: Path) -> Path:
    """A list of them that a test may change."""
    return shutil.copytree(made, tmp_path / "list", ignore=shutil.ignore_patterns("parts", "report.*"))


def settings(src: Path, out: Path, **changes: object) -> EncodeRun:
    cfg = EncodeRun(src=str(src), out=str(out), area=1024, max_frames=17, autoencoder=PCA, text_encoder=BYTES)
    return replace(cfg, **changes)


def test_frames_are_those_nearest_in_time(clips: Path) -> None:
    listed = read_clip_list(clips)
    limits = ClipLimits(1024, 17, (1, 2, 2), Resampling(16.0, 0.5))
    dropped: list[DroppedClip] = []
    planned = {clip.row.file: clip for clip in ClipSource(listed.root, limits, 4, 8).fitting(listed.rows, dropped)}
    shown = {name: numbers(read_clip(clip).numpy()) for name, clip in planned.items()}
    assert {name: clip.fps for name, clip in planned.items()} == dict.fromkeys(planned, 16.0) | {"image.png": 1.0}
    for name, rate in (("film.mp4", 24.0), ("fast.mkv", 60.0), ("held.mp4", 8.0)):
        moments = (planned[name].window.start + np.arange(planned[name].window.count)) / 16.0
        exact = moments * rate
        assert np.abs(np.array(shown[name]) - exact).max() <= 0.51 and len(shown[name]) in (13, 17)
    times = np.array([50 * number for number in range(20)] + [1000 + 100 * number for number in range(12)]) / 1000
    moments = (planned["varying.mkv"].window.start + np.arange(17)) / 16.0
    assert shown["varying.mkv"] == np.abs(times - moments[:, None]).argmin(axis=1).tolist()
    assert (shown["short.mp4"], shown["image.png"]) == ([0], [29])
    ((name, reason),) = [(clip.file, clip.reason) for clip in dropped]
    assert name == "slow.mp4"
    assert "has 3 frames a second, and would repeat frames at fps=16, more than max_doubled=0.5 of them. Rem" in reason


def test_a_window_that_is_slower_than_its_clip(tmp_path: Path) -> None:
    """A rate may vary: what counts in the end are the frames that are read."""
    times = [20 * number for number in range(30)] + [600 + 300 * number for number in range(12)]
    write_clip(tmp_path / "film.mkv", numbered(42), times=times)
    row = listed(tmp_path, tmp_path / "list", ["film.mkv"])["film.mkv"]
    source = ClipSource(tmp_path, ClipLimits(1024, 17, (1, 2, 2), Resampling(16.0, 0.5)), 4, 8)
    with pytest.raises(DataError, match=r"film\.mkv: 1\d of 17 frames of its window would repeat the one before at"):
        read_clip(source.plan(row))
    patient = replace(source, limits=replace(source.limits, resampling=Resampling(16.0, 0.9)))
    assert len(read_clip(patient.plan(row))) == 17


def test_a_clip_in_the_middle_of_a_film_is_sought(tmp_path: Path) -> None:
    write_clip(tmp_path / "film.mp4", numbered(60), fps=24)
    row = listed(tmp_path, tmp_path / "list", ["film.mp4"])["film.mp4"]
    row = replace(row, start=40, start_seconds=40 / 24, frames=20, start_digest="", frame_marks="")
    limits = ClipLimits(1024, 9, (1, 2, 2), Resampling(12.0, 0.5))
    clip = ClipSource(tmp_path, limits, 4, 8).plan(row)
    assert numbers(read_clip(clip).numpy()) == list(
        range(40 + 2 * clip.window.start, 40 + 2 * clip.window.start + 18, 2)
    )


def test_what_was_left_out_and_repeated_is_told(clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    report = encode(settings(clips, tmp_path / "out", fps=16.0))
    assert [(clip.file, "would repeat" in clip.reason) for clip in report.dropped] == [("slow.mp4", True)]
    assert report.rates == Rates(16.0, 16.0, 16.0, (RateCount(16.0, 4),), 0)
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest_v1.jsonl").read_text().splitlines()]
    assert {row["source"]: row["fps"] for row in rows} == {
        "film.mp4": 16.0, "fast.mkv": 16.0, "held.mp4": 16.0, "varying.mkv": 16.0, "short.mp4": 16.0, "image.png": 1.0
    }  # fmt: skip
    uses = {row["source"]: row["source_frames"] for row in rows}
    assert uses["film.mp4"] == {"total": 49, "used": 17, "skipped": 8, "doubled": 0}
    assert uses["held.mp4"] == {"total": 17, "used": 9, "skipped": 0, "doubled": 8}
    assert uses["short.mp4"] == {"total": 3, "used": 1, "skipped": 0, "doubled": 0}
    assert all(use["used"] + use["doubled"] == row["pixels"][0] for row, use in zip(rows, uses.values(), strict=True))
    sums = {name: sum(use[name] for use in uses.values()) for name in ("total", "used", "skipped", "doubled")}
    assert report.frames == FrameCounts(**sums, single=1) == open_dataset(str(tmp_path / "out")).info.frames
    assert report.frames.doubled > 8 and report.frames.skipped > 40
    assert f"{sums['used']} of {sums['total']} frames are used" in caplog.text
    assert f"{sums['doubled']} times one is repeated; 1 videos are so short that they became images" in caplog.text
    found = check_dataset(DoctorRun(data=str(tmp_path / "out"), tokens_per_pack=4096, steps=20))
    assert (found.rates, found.frames) == (report.rates, report.frames)
    assert {"frames a second": "16", "frames of clips": report.frames.words}.items() <= dict(rows_of(found)).items()


def test_rates_are_told_as_they_are(clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    report = encode(settings(clips, tmp_path / "out"))
    assert report.rates is not None and not report.dropped
    assert (report.rates.minimum, report.rates.median, report.rates.maximum) == (3.0, 14.76, 60.02)
    assert [one.samples for one in report.rates.counts] == [1] * 5
    assert report.frames.doubled == report.frames.skipped == 0
    assert "frames a second: 3 to 60.02, median 14.76 (1 at 3, 1 at 8, " in caplog.text


def test_one_dataset_has_one_rate_and_versions_add_up(clips: Path, tmp_path: Path) -> None:
    everything = (clips / "clips.jsonl").read_text().splitlines(keepends=True)
    (clips / "clips.jsonl").write_text(everything[0])
    first = encode(settings(clips, tmp_path / "out", fps=16.0))
    (clips / "clips.jsonl").write_text("".join(everything))
    for fps in (None, 24.0):
        with pytest.raises(ConfigError, match=r"fps.*begun with 16\.0.*give fps=16\.0 to add to it"):
            encode(settings(clips, tmp_path / "out", fps=fps))
    second = encode(settings(clips, tmp_path / "out", fps=16.0))
    whole = encode(settings(clips, tmp_path / "whole", fps=16.0))
    assert second.version == 2 and first.frames.total < second.frames.total
    assert second.frames == whole.frames


def test_counts_of_a_summary() -> None:
    rates = Rates.of(Counter({float(rate): rate for rate in range(1, 14)}))
    assert rates is not None and (rates.minimum, rates.median, rates.maximum) == (1.0, 10.0, 13.0)
    assert rates.counts[0] == RateCount(13.0, 13) and len(rates.counts) == 10 and rates.others == 6
