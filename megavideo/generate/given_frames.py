"""Pictures, videos and masks that a sample is given, as pixels of its size and at its frame rate.

Shape legend: T frames, H height, W width.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from megavideo.data.clips.media import is_image, iter_video, iter_window, probe, read_image
from megavideo.data.clips.resample import at_rate, num_frames_at
from megavideo.data.clips.resize import FrameWindow, filling, resize_frames
from megavideo.errors import DataError

_WHITE = 128  # of 255, from which on a pixel of a mask counts as white
_SAME_ASPECT = 0.01


def read_picture(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A picture that fills (height, width), cropped from its middle: uint8 [1, H, W, 3]. DataError where it is none."""
    pixels = read_image(path)
    height, width = pixels.shape[:2]
    return resize_frames([pixels], filling(width, height, 1.0, size))


def num_frames(path: Path, fps: float) -> int:
    """Frames that a video has at a rate of `fps`; DataError where it is damaged."""
    info = probe(path)
    return num_frames_at(info.frames, info.fps, fps)


def read_clip(path: Path, size: tuple[int, int], fps: float, window: FrameWindow) -> np.ndarray:
    """A window of a video at `fps` that fills (height, width): uint8 [T, H, W, 3]; DataError where it is damaged."""
    frames = [frame for _, frame in at_rate(iter_video(path), fps, window)]
    first = frames[0]
    return resize_frames(
        (frame.rgb() for frame in frames), filling(first.width, first.height, first.pixel_aspect, size)
    )


def read_made(path: Path, like: Path, size: tuple[int, int], fps: float, frames: int) -> np.ndarray:
    """Where a mask has its pixels to be made, which are white: bool [T, H, W] of `frames`, one picture holding for all.

    A pixel is to be made where any pixel of the mask within it is. Raises DataError where the mask has another aspect
    ratio than the picture or video `like`, or fewer frames.
    """
    if is_image(path):
        pictures = [read_image(path)] * frames
    else:
        count = num_frames(path, fps)
        if count < frames:
            raise DataError(
                f"{path}: has {count} frames at {fps:g} a second, and {frames} are masked. "
                "Remedy: give a longer mask, or a picture that holds for all frames"
            )
        window = FrameWindow(0, frames)
        pictures = [frame.rgb() for _, frame in at_rate(iter_video(path), fps, window)]
    _check_aspect(path, pictures[0], like)
    return np.stack([_fills(picture, size) for picture in pictures])


def _fills(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Where pixels of (height, width) hold any white of a picture [h, w, 3]: bool [H, W]."""
    height, width = picture.shape[:2]
    frame = filling(width, height, 1.0, size)
    white = (picture.max(axis=2) >= _WHITE).astype(np.float32)
    share = Image.fromarray(white).resize((frame.width, frame.height), Image.Resampling.BOX, box=frame.box)
    return np.asarray(share) > 0.0


def _check_aspect(path: Path, picture: np.ndarray, like: Path) -> None:
    if is_image(like):
        height, width = read_image(like).shape[:2]
    else:
        first = next(iter_window(like, 0, 1))
        height, width = first.height, first.width
    own_height, own_width = picture.shape[:2]
    if not math.isclose(own_width / own_height, width / height, rel_tol=_SAME_ASPECT):
        raise DataError(
            f"{path}: a mask of {own_width}x{own_height} pixels does not lie over {like} with {width}x{height}. "
            "Remedy: give a mask of the same aspect ratio"
        )
