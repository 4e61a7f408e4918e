"""Shots, pieces and letterbox on clips whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megavideo.config.schema.clip_filters import CutsConfig, FiltersConfig
from megavideo.config.schema.prepare import IngestRun
from megavideo.data.ingest import ClipRow, IngestReport, ingest, read_clip_list
from megavideo.data.ingest.letterbox import Bars
from tests.data.clip_files import moving_square, write_captions, write_clip

SHOTS = (17, 9, 30, 4, 24)


def texture(seed: int, frames: int, height: int, width: int, step: int = 1) -> np.ndarray:
    """Smooth random colours that move right by `step` pixels a frame, uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(30, 255, (height // 8 + 1, (width + step * frames) // 8 + 1, 3))
    wide = np.kron(cells, np.ones((8, 8, 1)))[:height]
    return np.stack([wide[:, step * t : step * t + width] for t in range(frames)]).astype(np.uint8)


def run(tmp_path: Path, frames: np.ndarray, fps: int = 25, **settings: object) -> tuple[IngestReport, list[ClipRow]]:
    src = tmp_path / "src"
    src.mkdir(exist_ok=True)
    if not (src / "a.mp4").exists():
        write_clip(src / "a.mp4", frames, fps=fps)
    write_captions(src, {"a.mp4": "a"})
    report = ingest(IngestRun(src=str(src), out=str(tmp_path / "out"), **settings))
    return report, list(read_clip_list(tmp_path / "out").rows)


def test_cuts_are_found_to_the_frame(tmp_path: Path) -> None:
    frames = np.concatenate([texture(seed, count, 72, 96) for seed, count in enumerate(SHOTS)])
    report, rows = run(tmp_path, frames)
    assert [row.frames for row in rows] == list(SHOTS)
    assert [row.start for row in rows] == [0, 17, 26, 56, 60]
    assert [row.start_seconds for row in rows] == pytest.approx([row.start / 25 for row in rows])
    assert len({row.clip_id for row in rows}) == len(SHOTS) and report.inputs_kept == 1
    kept = {row.start: row.clip_id for row in rows}
    # A short shot is dropped alone, and the others keep their names.
    report, rows = run(tmp_path, frames, filters=FiltersConfig(min_seconds=0.3))
    assert {row.start: row.clip_id for row in rows} == {start: kept[start] for start in (0, 17, 26, 60)}
    assert [(clip.kind, clip.start, clip.clip_id) for clip in report.dropped] == [("short", 56, kept[56])]


def test_no_cuts_where_there_are_none(tmp_path: Path) -> None:
    """Fast motion, a slow fade and a repeated first frame are no cuts."""
    moving = texture(0, 40, 72, 96, step=6)
    fade = (moving[-1] * np.linspace(1, 0.2, 30)[:, None, None, None]).astype(np.uint8)
    _, rows = run(tmp_path, np.concatenate([moving[:1], moving, fade]))
    assert [(row.start, row.frames) for row in rows] == [(0, 71)]


def test_cuts_can_be_left_out(tmp_path: Path) -> None:
    frames = np.concatenate([texture(seed, 12, 48, 64) for seed in range(3)])
    _, rows = run(tmp_path, frames, cuts=CutsConfig(enabled=False))
    assert [(row.start, row.frames) for row in rows] == [(0, 36)]


def test_long_shots_become_equal_pieces(tmp_path: Path) -> None:
    frames = np.concatenate([texture(0, 50, 48, 64), texture(1, 20, 48, 64)])
    # Overlapping textures of one shot look alike.
    filters = FiltersConfig(max_seconds=0.7, duplicate_bits=None)
    _, rows = run(tmp_path, frames, filters=filters)
    assert [(row.start, row.frames) for row in rows] == [(0, 17), (17, 16), (33, 17), (50, 10), (60, 10)]
    assert all(row.frames / row.fps <= 0.7 for row in rows)


@pytest.mark.parametrize(("max_seconds", "pieces"), [(10.0, 14), (100.0, 2), (None, 1)])
def test_a_shot_of_any_length_is_sampled_evenly(tmp_path: Path, max_seconds: float | None, pieces: int) -> None:
    """Of a shot of more than 1,024 samples, each piece has samples enough to tell that it moves."""
    frames = np.repeat(texture(0, 220, 32, 32), 5, axis=0)
    filters = FiltersConfig(max_seconds=max_seconds, duplicate_bits=None)
    report, rows = run(tmp_path, frames, fps=8, filters=filters)
    assert (len(rows), report.num_dropped) == (pieces, 0)
    assert sum(row.frames for row in rows) == len(frames)
    assert min(row.scores["change"] for row in rows) > 50


@pytest.mark.parametrize(
    ("bars", "inner"),
    [((12, 12, 0, 0), (84, 96)), ((0, 0, 10, 12), (108, 74)), ((12, 10, 8, 8), (86, 80))],
)
def test_bars_are_cut_away(tmp_path: Path, bars: tuple[int, int, int, int], inner: tuple[int, int]) -> None:
    top, bottom, left, right = bars
    picture = texture(3, 20, *inner)
    frames = np.pad(picture, ((0, 0), (top, bottom), (left, right), (0, 0)))
    _, (row,) = run(tmp_path, frames)
    assert row.crop is not None
    truth = np.array([left, top, left + inner[1], top + inner[0]])
    # Inside the picture, and by two lines at most.
    assert (np.abs(np.array(row.crop) - truth) <= 2).all()
    assert row.crop[0] >= left and row.crop[1] >= top and row.crop[2] <= truth[2] and row.crop[3] <= truth[3]
    assert (row.width, row.height) == (row.crop[2] - row.crop[0], row.crop[3] - row.crop[1])
    _, (whole,) = run(tmp_path, frames, filters=FiltersConfig(letterbox=False))
    assert (whole.crop, whole.width, whole.height) == (None, frames.shape[2], frames.shape[1])


def test_a_dark_shot_takes_the_bars_of_its_file(tmp_path: Path) -> None:
    bright = np.pad(texture(3, 20, 60, 96), ((0, 0), (12, 12), (0, 0), (0, 0)))
    dark = np.zeros_like(bright)
    dark[:, 30:40, 30:50] = texture(4, 20, 10, 20)
    _, rows = run(tmp_path, np.concatenate([bright, dark]))
    assert len(rows) == 2
    assert rows[1].crop == rows[0].crop is not None


@pytest.mark.parametrize("kind", ["one side", "something on black", "black"])
def test_what_is_no_letterbox(kind: str) -> None:
    frames = np.zeros((20, 64, 64, 3), np.uint8)
    if kind == "one side":
        frames[:, 12:] = texture(0, 20, 52, 64)
    elif kind == "something on black":
        # As wide as the demo's shapes at most, and moving from side to side.
        for t in range(20):
            frames[t, 20:44, 2 * t : 2 * t + 26] = 200
    bars = Bars()
    for frame in frames:
        bars.add(frame)
    assert bars.box() is None


def test_static_clips_are_dropped_and_images_pass(tmp_path: Path) -> None:
    """Noise of a codec is no change; one small thing that moves is."""
    src = tmp_path / "src"
    src.mkdir()
    still = np.repeat(texture(5, 1, 96, 128), 30, axis=0)
    noise = np.random.default_rng(0).normal(0, 2.0, still.shape)
    write_clip(src / "still.mp4", np.clip(still + noise, 0, 255).astype(np.uint8))
    blinking = still.copy()
    blinking[14:17, 40:50, 60:70] = 90
    write_clip(src / "blinking.mp4", blinking)
    write_clip(src / "moving.mp4", moving_square(30, 96, 128))
    from PIL import Image

    Image.fromarray(texture(6, 1, 64, 64)[0]).save(src / "picture.png")
    write_captions(src, dict.fromkeys(("still.mp4", "blinking.mp4", "moving.mp4", "picture.png"), "x"))
    filters = FiltersConfig(duplicate_bits=None, min_motion=0.0, min_seconds=1.0)
    report = ingest(IngestRun(src=str(src), out=str(tmp_path / "out"), filters=filters))
    assert [(clip.file, clip.kind) for clip in report.dropped] == [("still.mp4", "static")]
    scores = {row.file: row.scores for row in read_clip_list(tmp_path / "out").rows}
    assert set(scores["picture.png"]) == {"sharpness", "aesthetic"}
    assert scores["moving.mp4"]["motion"] > scores["blinking.mp4"]["motion"]
