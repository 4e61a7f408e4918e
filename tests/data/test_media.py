from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megavideo.data.clips.media import decode_frames, iter_frames, iter_video, probe
from megavideo.data.clips.seek import Anchor
from megavideo.errors import DataError
from tests.data.clip_files import moving_square, turn_header, write_clip
from tests.data.seek_files import write_video_file


def near(a: np.ndarray, b: np.ndarray) -> bool:
    return float(np.abs(a.astype(int) - b.astype(int)).mean()) < 4.0


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mkv", "libx264", "yuv444p"),
        ("a.mov", "libx264", "yuv420p10le"),
        ("a.mp4", "libx265", "yuv420p10le"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.mkv", "libsvtav1", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.mpg", "mpeg2video", "yuv420p"),
    ],
)
def test_formats(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    import av

    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    frames = moving_square(10, 64, 96)
    path = write_clip(tmp_path / name, frames, fps=25, codec=codec, pix_fmt=pix_fmt)
    info = probe(path)
    assert (info.frames, info.width, info.height, info.is_image) == (10, 96, 64, False)
    assert info.fps == pytest.approx(25.0, abs=0.01)
    assert near(decode_frames(path, 3, 4), frames[3:7])


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_rotation(tmp_path: Path, quarter_turns: int) -> None:
    frames = moving_square(3, 32, 64)
    path = turn_header(write_clip(tmp_path / "a.mp4", frames), quarter_turns)
    upright = np.rot90(frames, -quarter_turns, axes=(1, 2))
    info = probe(path)
    assert (info.height, info.width) == upright.shape[1:3]
    assert near(decode_frames(path, 0, 3), upright)


def test_variable_rate_is_averaged(tmp_path: Path) -> None:
    times = [0, 40, 80, 200, 240, 500]
    path = write_clip(tmp_path / "a.mkv", moving_square(6, 32, 32), times=times)
    assert probe(path).fps == pytest.approx(5 / 0.5, rel=1e-3)


def test_only_the_window_is_decoded(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", moving_square(30, 32, 32))
    frames = iter_frames(path, 2, 20)
    assert next(frames).shape == (32, 32, 3)
    assert len(list(frames)) == 19
    with pytest.raises(DataError, match="has 30 frames"):
        decode_frames(path, 20, 11)


def test_truncated_and_damaged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (32, 64, 64, 3), dtype=np.uint8)
    whole = write_clip(tmp_path / "a.mkv", noise).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(DataError, match=r"cut short|damaged"):
        probe(cut)
    holed = tmp_path / "holed.mkv"
    holed.write_bytes(whole[: len(whole) // 2] + bytes(4000) + whole[len(whole) // 2 + 4000 :])
    with pytest.raises(DataError, match=r"damaged|cut short"):
        probe(holed)
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    with pytest.raises(DataError, match="damaged or not a video"):
        probe(empty)


def test_images(tmp_path: Path) -> None:
    pixels = moving_square(1, 24, 40)[0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    info = probe(tmp_path / "a.png")
    assert (info.frames, info.width, info.height, info.is_image) == (1, 40, 24, True)
    assert np.array_equal(decode_frames(tmp_path / "a.png", 0, 1)[0], pixels)
    # Orientation 6: the camera was turned, so that the stored picture is to be turned clockwise.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "b.jpg", exif=exif, quality=98)
    assert near(decode_frames(tmp_path / "b.jpg", 0, 1)[0], np.rot90(pixels, -1))
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(tmp_path / "c.png")
    assert decode_frames(tmp_path / "c.png", 0, 1).tolist() == [[[[255] * 3] * 8] * 8]
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "d.png")
    assert decode_frames(tmp_path / "d.png", 0, 1).min() == 255
    (tmp_path / "e.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:300])
    with pytest.raises(DataError, match="damaged or not an image"):
        probe(tmp_path / "e.jpg")


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx265"), ("a.webm", "libvpx-vp9"), ("a.ts", "libx264"), ("a.avi", "mpeg4")],
)
def test_an_anchor_changes_nothing(tmp_path: Path, name: str, codec: str) -> None:
    """Frames read from the middle by seeking are those of reading from the beginning, bit for bit."""
    import av

    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    path = write_clip(tmp_path / name, moving_square(150, 64, 96), fps=25, codec=codec)
    seconds = [frame.seconds for frame in iter_video(path)]
    for start, count in ((33, 3), (100, 20), (148, 2)):
        for first in (start, start - 1):
            found = list(iter_frames(path, start, count, Anchor(first, seconds[first])))
            assert np.array_equal(np.stack(found), decode_frames(path, start, count))
    # A time that no frame has leads to reading from the beginning.
    wrong = list(iter_frames(path, 100, 2, Anchor(100, seconds[100] + 0.01)))
    assert np.array_equal(np.stack(wrong), decode_frames(path, 100, 2))
    with pytest.raises(DataError, match="has 150 frames"):
        list(iter_frames(path, 149, 2, Anchor(149, seconds[149])))


@pytest.mark.parametrize("name", ["gone.mp4", "gone.png"])
def test_a_file_that_is_gone_is_not_called_damaged(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"gone\.(mp4|png): cannot be read \(No such file or directory\)"):
        decode_frames(tmp_path / name, 0, 1)


def test_a_clock_that_jumps_by_weeks_is_damage(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", moving_square(3, 32, 48), times=[0, 40, 10**10])
    with pytest.raises(DataError, match=r"a\.mkv: damaged \(its clock runs 1e\+07 s over 3 frames"):
        probe(path)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "mpeg4"])
def test_transport_streams_one_behind_the_other(tmp_path: Path, codec: str) -> None:
    """Every frame of both is read; a packet that is lost in the middle is damage all the same."""
    part = write_video_file(tmp_path / "a.ts", codec).read_bytes()
    frames = np.stack([frame.rgb() for frame in iter_video(tmp_path / "a.ts")])
    (tmp_path / "b.ts").write_bytes(part + part)
    both = np.stack([frame.rgb() for frame in iter_video(tmp_path / "b.ts")])
    assert np.array_equal(both, np.concatenate([frames, frames]))
    lost = 188 * (len(part) // 188 // 2)
    (tmp_path / "c.ts").write_bytes(part[:lost] + part[lost + 3 * 188 :])
    with pytest.raises(DataError, match="damaged"):
        probe(tmp_path / "c.ts")


def test_a_webm_of_one_frame(tmp_path: Path) -> None:
    """Its duration is how long the frame is shown."""
    path = write_clip(tmp_path / "a.webm", moving_square(2, 32, 32), codec="libvpx-vp9", times=[0, 3000])
    data = path.read_bytes()
    block = data.rindex(b"\xa3")  # of the second frame
    path.write_bytes(data[:block])
    assert probe(path).frames == 1
