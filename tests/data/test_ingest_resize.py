from __future__ import annotations

import numpy as np
import pytest

from megavideo.data.clips.resize import FrameSize, fit_size, fit_window, resize_frames
from megavideo.errors import DataError


@pytest.mark.parametrize("width", [50, 176, 320, 426, 720, 1280, 3840])
@pytest.mark.parametrize("height", [64, 144, 240, 568, 720, 2160])
@pytest.mark.parametrize("area", [1024, 16384, 65536, 921600])
def test_sizes_are_legal(width: int, height: int, area: int) -> None:
    try:
        size = fit_size(width, height, 1.0, area, (16, 16))
    except DataError:
        assert max(width, height) / min(width, height) > 4
        return
    assert size.height % 16 == size.width % 16 == 0
    assert size.height * size.width <= area
    assert size.height <= height and size.width <= width
    left, top, right, bottom = size.box
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    # What is kept keeps its aspect ratio.
    assert (right - left) / (bottom - top) == pytest.approx(size.width / size.height)
    assert (right - left) * (bottom - top) >= 0.5 * width * height - 1


def test_known_sizes() -> None:
    assert fit_size(1280, 720, 1.0, 16384, (16, 16)).box == pytest.approx((40, 0, 1240, 720))
    assert fit_size(128, 128, 1.0, 1 << 20, (16, 16)) == FrameSize(128, 128, (0.0, 0.0, 128.0, 128.0))
    # Pixels twice as wide as high: half of the height remains, and nothing is enlarged.
    wide = fit_size(128, 128, 2.0, 1 << 20, (16, 16))
    assert (wide.height, wide.width) == (64, 128)
    with pytest.raises(DataError, match="8x200 pixels"):
        fit_size(8, 200, 1.0, 16384, (16, 16))


@pytest.mark.parametrize(
    ("frames", "most", "patch_t", "start", "count"),
    [
        (1, 17, 1, 0, 1),
        (3, 17, 1, 1, 1),
        (17, 17, 1, 0, 17),
        (16, 17, 1, 1, 13),
        (100, 17, 1, 41, 17),
        (100, 17, 2, 43, 13),
    ],
)
def test_windows(frames: int, most: int, patch_t: int, start: int, count: int) -> None:
    window = fit_window(frames, most, 4, patch_t)
    assert (window.start, window.count) == (start, count)


def test_too_short() -> None:
    with pytest.raises(DataError, match="at least 5"):
        fit_window(1, 17, 4, 2)


def test_resize_crops_the_middle() -> None:
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[:, 16:48] = 200
    video = resize_frames([frame, frame], FrameSize(16, 16, (16.0, 0.0, 48.0, 32.0)))
    assert video.shape == (2, 16, 16, 3)
    assert (video[:, :, 1:-1] >= 200).all()
