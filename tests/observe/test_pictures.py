"""Contact sheets and the loss plot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megavideo.errors import DataError
from megavideo.observe.metrics import MetricsWriter
from megavideo.observe.pictures import contact_sheet, evenly_spaced, frame_strip
from megavideo.observe.plot import plot_loss, smooth


def _clip(num_frames: int, height: int, width: int) -> np.ndarray:
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    frames[:] = (np.arange(num_frames) * 10 + 50)[:, None, None, None]
    return frames


def test_evenly_spaced() -> None:
    assert evenly_spaced(17, 5) == [0, 4, 8, 12, 16]
    assert evenly_spaced(3, 6) == [0, 1, 2]
    assert evenly_spaced(1, 4) == [0]


def test_strip_shows_the_right_frames() -> None:
    strip = np.asarray(frame_strip(_clip(9, 4, 6), count=3, scale=2, gap=4))
    assert strip.shape == (8, 3 * 12 + 2 * 4, 3)
    assert [strip[4, x, 0] for x in (6, 22, 38)] == [50, 90, 130]


def test_sheet_holds_every_clip_whatever_its_size() -> None:
    rows = [("a short caption", _clip(9, 64, 48)), ("word " * 200, _clip(5, 32, 96)), ("", _clip(1, 16, 16))]
    sheet = np.asarray(contact_sheet(rows, frames_per_row=4, scale=1))
    for level in (50, 130, 90):  # first and last frame of the first clip; last frame of the second
        assert (sheet == level).all(axis=-1).sum() >= 32 * 48
    assert sheet.shape[1] < 4 * 96 + 4 * 4 + 2 * 12 + 1
    assert sheet.shape[0] < 64 + 32 + 16 + 5 * 20 + 4 * 12 + 1  # the long caption is cut to three lines


def test_empty_sheet_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], 4, 1)


def test_loss_plot(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        writer.write(1, {"loss": 1.0})
        writer.write(2, {"loss": float("nan"), "learning_rate": 1e-3})
        writer.write(3, {"loss": 0.5, "learning_rate": 2e-3})
    plot_loss(tmp_path / "metrics.jsonl", tmp_path / "pictures" / "loss.png")
    picture = Image.open(tmp_path / "pictures" / "loss.png")
    assert picture.format == "PNG" and picture.width > 800
    assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10
    assert [p.name for p in (tmp_path / "pictures").iterdir()] == ["loss.png"]


def test_plot_without_a_loss_is_reported(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n')
    with pytest.raises(DataError, match="finite loss"):
        plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png")


def test_smoothing_is_unbiased_and_does_not_lag() -> None:
    assert smooth(np.full(10, 3.0), 4.0) == pytest.approx(np.full(10, 3.0))
    line = np.arange(101.0)
    assert smooth(line, 3.0)[50] == pytest.approx(50.0)
    assert smooth(line, 3.0)[-1] < 100.0
