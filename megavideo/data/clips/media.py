"""Decoding of video and images: probing a file wholly, and reading a window of its frames.

Frames come out in presentation order, upright (rotation and mirroring of the container honoured), as 8-bit RGB arrays
[H, W, 3], one at a time: a long film is never held in memory. HDR comes out as SDR, interlaced frames whole, and what
is transparent over white. Video and animated GIF are read with PyAV, other images, still or animated, with Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from megavideo.border import media
from megavideo.border.fields import Count, Positive, Size
from megavideo.border.refused import Refused
from megavideo.data.clips.decode import decoded, demuxed, in_presentation_order, video_stream, whole_packets
from megavideo.data.clips.deinterlace import deinterlaced
from megavideo.data.clips.formats import (
    ANIMATION_SUFFIXES,
    FFMPEG_OPTIONS,
    HEIF_SUFFIXES,
    IMAGE_SUFFIXES,
    MOST_PIXELS,
    pillow_formats,
)
from megavideo.data.clips.frame import Frame, Traits
from megavideo.data.clips.pictures import Still, animation_frames, read_still
from megavideo.data.clips.seek import Anchor, from_anchor, may_seek
from megavideo.data.clips.tone_map import Transfer
from megavideo.errors import DataError
from megavideo.types import IMAGE_FPS

_BY_FFMPEG = frozenset((".gif",))
_MAYBE_HDR = frozenset((".avif",))


class TooManyPixels(DataError):
    """A frame of more `pixels` than are asked for, by what the header of its file tells: nothing was decoded."""

    def __init__(self, path: Path, width: int, height: int) -> None:
        super().__init__(f"{path}: has frames of {width}x{height} pixels")
        self.pixels = width * height


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds, upright: frames, average rate over its real timestamps, size in pixels.

    `pixel_aspect` is the width of a pixel over its height. A single image is one frame at 1 frame a second.

    What its pixels are made from: `transfer` is HDR's that is mapped to SDR, `is_interlaced` tells that some of its
    frames were, `has_alpha` that it lies over white, `is_animation` that it is an animated image. Of `pages` of an
    image the first is read. `holes` is how often the clock of a video stands still or begins anew.
    """

    frames: Size
    fps: Positive
    width: Size
    height: Size
    pixel_aspect: Positive
    is_image: bool
    transfer: Transfer = "sdr"
    is_interlaced: bool = False
    has_alpha: bool = False
    is_animation: bool = False
    pages: Size = 1
    holes: Count = 0


@contextmanager
def opened_video(path: Path) -> Iterator[Any]:
    """The PyAV container of a video; whatever FFmpeg says of it in the block becomes a DataError."""
    with _naming(path), media.opened_video(path, FFMPEG_OPTIONS) as container:
        yield container


@contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """The Pillow image of a file; whatever Pillow says of it in the block becomes a DataError."""
    with _naming(path), media.opened_image(path, pillow_formats(path)) as image:
        yield image


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except Refused as error:
        raise DataError(f"{path}: {error}") from error
    except (FileNotFoundError, PermissionError) as error:
        raise _cannot_read(path, error) from error


def is_image(path: Path) -> bool:
    """True for a file of a still image by its suffix, and by what it holds where that may be an animation."""
    suffix = path.suffix.lower()
    return suffix in IMAGE_SUFFIXES | ANIMATION_SUFFIXES | HEIF_SUFFIXES and not (
        suffix in ANIMATION_SUFFIXES and _is_animated(path)
    )


def probe(path: Path) -> MediaInfo:
    """Decode the whole file and tell what it holds. Raises DataError with the reason where any frame is damaged."""
    if is_image(path):
        return still_info(read_image_file(path))
    times: list[float] = []
    first: Frame | None = None
    for frame in iter_video(path):
        first = first or frame
        times.append(frame.seconds)
    if first is None:
        raise DataError(f"{path}: holds no video frame")
    return video_info(first.traits, len(times), video_rate(path, times, first.told.rate))


def iter_video(path: Path, most_pixels: int = MOST_PIXELS) -> Iterator[Frame]:
    """Every frame of a video in presentation order, read to the end.

    Raises DataError where any frame is damaged, the size of the picture changes, or the file is cut short, and
    TooManyPixels where a frame has more than `most_pixels`.
    """
    size: tuple[int, int] | None = None
    for index, frame in enumerate(_all_frames(path, True, most_pixels)):
        if size is None:
            _check_pixels(path, frame.width, frame.height, most_pixels)  # a header may tell of none
        if size is not None and size != (frame.width, frame.height):
            change = f"{size[0]}x{size[1]} to {frame.width}x{frame.height} at frame {index}"
            raise DataError(f"{path}: its size changes from {change}")
        size = frame.width, frame.height
        yield frame


def iter_frames(path: Path, start: int, count: int, anchor: Anchor | None = None) -> Iterator[np.ndarray]:
    """Frames `start` to `start + count - 1` of a clip, lazily, as uint8 [H, W, 3].

    An `anchor` at or before `start` saves decoding what lies before it, where that is proven to change nothing else.
    Raises DataError where the file is damaged or has fewer frames.
    """
    if is_image(path):
        if start != 0 or count != 1:
            raise DataError(f"{path}: an image has one frame, and {count} from {start} are asked for")
        yield read_image(path)
        return
    for frame in iter_window(path, start, count, anchor):
        yield frame.rgb()


def iter_window(path: Path, start: int, count: int, anchor: Anchor | None = None) -> Iterator[Frame]:
    """The same of a video as frames with their times, whose pixels are converted only when asked for."""
    given = num_frames = 0
    for index, frame in _numbered(path, anchor if anchor and anchor.is_far and anchor.frame <= start else None):
        num_frames = max(num_frames, index + 1)
        if index < start:
            continue
        yield frame
        given += 1
        if given == count:
            return
    raise DataError(f"{path}: has {num_frames} frames, and {count} from {start} are asked for")


def decode_frames(path: Path, start: int, count: int) -> np.ndarray:
    """Frames `start` to `start + count - 1` of a clip as uint8 [T, H, W, 3]; DataError as `iter_frames`."""
    return np.stack(list(iter_frames(path, start, count)))


def _numbered(path: Path, anchor: Anchor | None) -> Iterator[tuple[int, Frame]]:
    """Frames with their numbers: from the anchor as far as the file can be sought exactly, then from the beginning.

    None comes twice. Where the file has to be read from the beginning, the frames before the anchor come too.
    """
    begin = due = anchor.frame if anchor is not None else 0
    if anchor is not None:
        for frame in from_anchor(anchor, lambda seconds: _frames_from(path, anchor, seconds)):
            yield due, frame
            due += 1
    for index, frame in enumerate(_all_frames(path, False, MOST_PIXELS)):
        if not begin <= index < due:
            yield index, frame


def _all_frames(path: Path, whole: bool, most_pixels: int) -> Iterator[Frame]:
    """The frames of a file in order; with `whole`, its end is compared with the duration that its header tells."""
    if path.suffix.lower() in ANIMATION_SUFFIXES - _BY_FFMPEG:
        with opened_image(path) as image:
            _check_pixels(path, image.width, image.height, most_pixels)
            yield from animation_frames(image)
        return
    with opened_video(path) as container:
        stream = video_stream(path, container)
        _check_pixels(path, stream.codec_context.width, stream.codec_context.height, most_pixels)
        packets = whole_packets(path, container, stream) if whole else demuxed(container, stream)
        frames = deinterlaced(in_presentation_order(decoded(path, packets, stream)))
        is_animation = path.suffix.lower() in ANIMATION_SUFFIXES
        yield from (replace(frame, is_animation=is_animation) for frame in frames)


def _frames_from(path: Path, anchor: Anchor, seconds: float) -> Iterator[Frame]:
    """Frames from what the file calls the last key frame before a time; none where the anchor may not be sought."""
    if path.suffix.lower() in ANIMATION_SUFFIXES:
        return
    with opened_video(path) as container:
        stream = video_stream(path, container)
        if may_seek(container, stream, anchor):
            container.seek(int(seconds / float(stream.time_base)), stream=stream)
            yield from decoded(path, demuxed(container, stream), stream)


def video_rate(path: Path, times: list[float], told: float) -> float:
    """Frames a second over the steps of the clock, leaving out steps where the clock starts again.

    A single frame has the rate `told` by the header of the file. Raises DataError for a clock that jumps by weeks.
    """
    steps = [later - earlier for earlier, later in pairwise(times) if later > earlier]
    if not steps:
        return told or 1.0
    seconds = math.fsum(steps)
    rate = round(len(steps) / seconds, 6)
    if rate <= 0.0:
        raise DataError(f"{path}: damaged (its clock runs {seconds:.3g} s over {len(times)} frames)")
    return rate


def video_info(traits: Traits, frames: int, fps: float) -> MediaInfo:
    """What a video holds, by what is known of a frame of it."""
    return MediaInfo(
        frames=frames,
        fps=fps,
        width=traits.width,
        height=traits.height,
        pixel_aspect=traits.pixel_aspect,
        is_image=False,
        transfer=traits.transfer,
        is_interlaced=traits.is_interlaced,
        has_alpha=traits.has_alpha,
        is_animation=traits.is_animation,
    )


def still_info(still: Still) -> MediaInfo:
    """What a still image holds."""
    height, width = still.pixels.shape[:2]
    return MediaInfo(
        1, IMAGE_FPS, width, height, 1.0, True, still.transfer, has_alpha=still.has_alpha, pages=still.pages
    )


def read_image(path: Path) -> np.ndarray:
    """A still image, upright, over white where it is transparent, as uint8 [H, W, 3]."""
    return read_image_file(path).pixels


def read_image_file(path: Path, most_pixels: int = MOST_PIXELS) -> Still:
    """A still image with what is to be told of it; DataError where it is damaged, TooManyPixels as `iter_video`."""
    with opened_image(path) as image:
        _check_pixels(path, image.width, image.height, most_pixels)
        hdr = _hdr_still(path, image.size) if path.suffix.lower() in _MAYBE_HDR else None
        return read_still(image) if hdr is None else hdr


def _is_animated(path: Path) -> bool:
    """True for an image of several pictures that follow each other; what cannot be read is called a still one."""
    try:
        with opened_image(path) as image:
            return bool(getattr(image, "is_animated", False))
    except DataError:
        return False


def _hdr_still(path: Path, size: tuple[int, int]) -> Still | None:
    """An HDR image of this size, which Pillow would take for SDR, by way of FFmpeg; None where it is none."""
    try:
        with opened_video(path) as container:
            stream = video_stream(path, container)
            frame = next(decoded(path, demuxed(container, stream), stream), None)
            if frame is None or frame.transfer == "sdr" or {frame.width, frame.height} != set(size):
                return None
            return Still(frame.rgb(), False, 1, frame.transfer)
    except DataError:
        return None  # FFmpeg reads fewer kinds


def _check_pixels(path: Path, width: int, height: int, most_pixels: int) -> None:
    if width * height > most_pixels:
        raise TooManyPixels(path, width, height)


def _cannot_read(path: Path, error: OSError) -> DataError:
    """A file that is gone or barred is not damaged."""
    return DataError(f"{path}: cannot be read ({error.strerror})")
