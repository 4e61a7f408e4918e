"""Writing of frames as H.264 in mp4, whole or not at all.

Shape legend: T frames, H height, W width.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np

from megavideo.data.storage.files import writing
from megavideo.errors import DataError
from megavideo.observe.whole_file import replacing

_CRF = "14"  # visually lossless at the sizes that are sampled
_BT709 = 1  # ITU-T H.273 code for primaries, transfer and matrix
_LIMITED_RANGE = 1


def write_video(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write `frames` uint8 [T, H, W, 3] (RGB) to the mp4 file `path` at `fps` frames per second.

    The video is H.264, BT.709, and reads back with exactly T frames of H x W. Even sizes are yuv420p, which every
    player takes; an odd size cannot be 4:2:0 in H.264 and is written yuv444p (Chrome, VLC, mpv and ffmpeg play it).
    The file appears complete under its name or not at all.

    Raises DataError where the frames or the rate are no video, or the disk refuses.
    """
    _check(path, frames, fps)
    with writing(path), replacing(path) as temporary:
        _encode(temporary, frames, fps)


def _check(path: Path, frames: np.ndarray, fps: float) -> None:
    """Raise DataError for frames that are no uint8 [T, H, W, 3] video, or a rate that is not positive."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise DataError(
            f"{path}: cannot write frames of type {frames.dtype} and shape {tuple(frames.shape)}: "
            "a video is uint8 [T, H, W, 3] with at least one frame. Remedy: convert the frames before writing"
        )
    if not (math.isfinite(fps) and 0.01 <= fps <= 1000.0):
        raise DataError(f"{path}: fps={fps!r}: must be between 0.01 and 1000. Remedy: give frames per second")


def _encode(path: Path, frames: np.ndarray, fps: float) -> None:
    """Encode all frames into `path`, whose name need not end in .mp4."""
    import av

    rate = Fraction(fps).limit_denominator(1001)
    _, height, width, _ = frames.shape
    pixel_format = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": _CRF, "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.thread_count = 1  # the clips are small, and several processes write at once
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED_RANGE
        for number, pixels in enumerate(frames):
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = rgb.reformat(format=pixel_format, dst_colorspace="ITU709", dst_color_range="MPEG")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
