"""Writing of mp4: sizes, rate, colours, atomicity and refusals."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from megavideo.data.clips.write_video import write_video
from megavideo.errors import DataError


def _read(path: Path) -> tuple[np.ndarray, float, str]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), float(stream.average_rate or 0), stream.codec_context.pix_fmt or ""


def _gradient(num_frames: int, height: int, width: int) -> np.ndarray:
    t, y, x = np.meshgrid(np.arange(num_frames), np.arange(height), np.arange(width), indexing="ij")
    return np.stack([40 + 2 * x % 160, 60 + 2 * y % 150, 90 + 3 * t], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("num_frames", "height", "width", "fps"), [(9, 48, 80, 12.0), (1, 32, 32, 8.0), (5, 33, 47, 24.0), (3, 2, 2, 29.97)]
)
def test_reads_back_as_written(tmp_path: Path, num_frames: int, height: int, width: int, fps: float) -> None:
    frames = _gradient(num_frames, height, width)
    path = tmp_path / "made" / "clip.mp4"
    write_video(path, frames, fps)
    read, rate, pixel_format = _read(path)
    assert read.shape == frames.shape
    assert rate == pytest.approx(fps, rel=1e-4)
    assert pixel_format == ("yuv444p" if height % 2 or width % 2 else "yuv420p")
    assert np.abs(read.astype(float) - frames).mean() < 6
    assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"]


def test_colours_keep_their_value(tmp_path: Path) -> None:
    """A wrong matrix or range shifts saturated colours by tens of levels."""
    for colour in [(220, 40, 40), (40, 200, 60), (50, 70, 230), (235, 215, 40), (0, 0, 0), (255, 255, 255)]:
        write_video(tmp_path / "c.mp4", np.full((2, 32, 32, 3), colour, np.uint8), 8.0)
        read, _, _ = _read(tmp_path / "c.mp4")
        assert np.abs(read.reshape(-1, 3).mean(0) - colour).max() < 4, colour


def test_replaces_only_when_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, _gradient(2, 32, 32), 8.0)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(RuntimeError):
        write_video(path, _gradient(3, 48, 48), 8.0)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"clip\.mp4: cannot be written \(.*Remedy"):
        write_video(tmp_path / "file" / "clip.mp4", _gradient(2, 32, 32), 8.0)
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(DataError, match=r"clip\.mp4: cannot be written \(File too large"):
            write_video(tmp_path / "clip.mp4", _gradient(9, 64, 64), 8.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("frames", "fps"),
    [
        (np.zeros((2, 8, 8), np.uint8), 8.0),
        (np.zeros((2, 8, 8, 3), np.float32), 8.0),
        (np.zeros((0, 8, 8, 3), np.uint8), 8.0),
        (np.zeros((2, 8, 8, 3), np.uint8), 0.0),
        (np.zeros((2, 8, 8, 3), np.uint8), float("nan")),
    ],
)
def test_refuses_what_is_no_video(tmp_path: Path, frames: np.ndarray, fps: float) -> None:
    with pytest.raises(DataError, match=r"bad\.mp4.*Remedy"):
        write_video(tmp_path / "bad.mp4", frames, fps)
    assert list(tmp_path.iterdir()) == []
