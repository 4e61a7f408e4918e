"""Decoding of video and images: probing a file wholly, and reading a window of its frames.

Frames come out in presentation order, upright (rotation and mirroring of the container honoured), as 8-bit RGB arrays
[H, W, 3], one at a time: a long film is never held in memory. Video is read with PyAV, still images with Pillow.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation
from PIL import Image, ImageOps, UnidentifiedImageError

from megavideo.errors import DataError

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".gif", ".ts", ".m2ts", ".wmv", ".flv", ".3gp")
)
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"))

# H.264 and HEVC reorder at most this many frames; a longer jump back is a new start of the clock.
_REORDER_FRAMES = 16
_CLOCK_RESTART_SECONDS = 1.0
# A file that ends this much before the duration its header tells is cut short; headers are that inexact.
_SLACK_SECONDS = 0.5
_SLACK_SHARE = 0.05
# Exact conversion, the same on every machine.
_CONVERSION = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds, upright: frames, average rate over its real timestamps, size in pixels.

    `pixel_aspect` is the width of a pixel over its height. A single image is one frame at 1 frame a second.
    """

    frames: int
    fps: float
    width: int
    height: int
    pixel_aspect: float
    is_image: bool


@dataclass(frozen=True)
class _Upright:
    """How stored pixels become upright ones: first transpose, then mirror."""

    transpose: bool
    mirror_x: bool
    mirror_y: bool

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        if self.transpose:
            pixels = pixels.transpose(1, 0, 2)
        if self.mirror_x:
            pixels = pixels[:, ::-1]
        if self.mirror_y:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)


def is_media(path: Path) -> bool:
    """True for a file whose suffix names video or a still image."""
    return path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES


def probe(path: Path) -> MediaInfo:
    """Decode the whole file and tell what it holds. Raises DataError with the reason where any frame is damaged."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        pixels = _read_image(path)
        return MediaInfo(1, 1.0, pixels.shape[1], pixels.shape[0], 1.0, True)
    times: list[float] = []
    width = height = 0
    aspect = 1.0
    for frame, upright in _iter_video(path, whole=True):
        size = (frame.height, frame.width) if upright.transpose else (frame.width, frame.height)
        if times and size != (width, height):
            change = f"{width}x{height} to {size[0]}x{size[1]} at frame {len(times)}"
            raise DataError(f"{path}: its size changes from {change}")
        width, height = size
        if not times:
            aspect = 1.0 / frame.pixel_aspect if upright.transpose else frame.pixel_aspect
        times.append(frame.seconds)
    if not times:
        raise DataError(f"{path}: holds no video frame")
    return MediaInfo(len(times), _average_rate(path, times), width, height, aspect, False)


def iter_frames(path: Path, start: int, count: int) -> Iterator[np.ndarray]:
    """Frames `start` to `start + count - 1` of a clip, lazily, as uint8 [H, W, 3].

    Raises DataError where the file is damaged or ends before.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        if start != 0 or count != 1:
            raise DataError(f"{path}: an image has one frame, and {count} from {start} are asked for")
        yield _read_image(path)
        return
    given = 0
    for index, (frame, upright) in enumerate(_iter_video(path, whole=False)):
        if index < start:
            continue
        yield upright.apply(frame.rgb())
        given += 1
        if given == count:
            return
    raise DataError(f"{path}: ends at frame {start + given}, and {count} frames from {start} are asked for")


def decode_frames(path: Path, start: int, count: int) -> np.ndarray:
    """Frames `start` to `start + count - 1` of a clip as uint8 [T, H, W, 3]; DataError as `iter_frames`."""
    return np.stack(list(iter_frames(path, start, count)))


@dataclass(frozen=True)
class _Frame:
    """A decoded frame with its time and the pixel aspect of its stream; pixels are converted only when asked for."""

    raw: av.VideoFrame
    seconds: float
    pixel_aspect: float

    @property
    def width(self) -> int:
        return self.raw.width

    @property
    def height(self) -> int:
        return self.raw.height

    def rgb(self) -> np.ndarray:
        return self.raw.to_ndarray(format="rgb24", interpolation=_CONVERSION, threads=1)


def _iter_video(path: Path, whole: bool) -> Iterator[tuple[_Frame, _Upright]]:
    """Decoded frames in presentation order. Raises DataError on anything that cannot be decoded.

    With `whole`, the end of the file is compared with the duration that its header tells.
    """
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = _video_stream(path, container)
            packets = _whole_packets(path, container, stream) if whole else container.demux(stream)
            yield from _presentation_order(_decoded(path, packets, stream))
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: damaged or not a video ({reason})") from error


def _video_stream(path: Path, container: Any) -> Any:
    # A cover picture is a video stream too, of one frame.
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise DataError(f"{path}: holds no video stream")
    return streams[0]


def _whole_packets(path: Path, container: Any, stream: Any) -> Iterator[Any]:
    """The packets of `stream`; DataError at the end where no stream lasts as long as the header tells."""
    last = 0.0
    for packet in container.demux():
        if packet.pts is not None:
            last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index:
            yield packet
    if container.duration:
        told = (container.duration + (container.start_time or 0)) / av.time_base
        frame = 1.0 / float(stream.average_rate) if stream.average_rate else 0.0
        if last + frame < told - max(_SLACK_SECONDS, _SLACK_SHARE * told):
            raise DataError(f"{path}: cut short (it ends after {last:.2f} s, and its header tells {told:.2f} s)")


def _decoded(path: Path, packets: Iterator[Any], stream: Any) -> Iterator[tuple[_Frame, _Upright]]:
    ratio = stream.sample_aspect_ratio
    aspect = float(ratio) if ratio else 1.0
    time_base = float(stream.time_base or 0.0)
    step = 1.0 / float(stream.average_rate) if stream.average_rate else 0.0
    seconds, index = -step, 0
    for packet in packets:
        if packet.is_corrupt:
            raise DataError(f"{path}: damaged near frame {index} (a packet is cut short)")
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            raise DataError(f"{path}: damaged after frame {index} ({error.strerror})") from error
        for raw in frames:
            if raw.is_corrupt:
                raise DataError(f"{path}: damaged at frame {index} (it decodes only in part)")
            # A frame without a timestamp follows the one before it.
            seconds = raw.pts * time_base if raw.pts is not None else seconds + step
            yield _Frame(raw, seconds, aspect), _upright(raw)
            index += 1


def _presentation_order(frames: Iterator[tuple[_Frame, _Upright]]) -> Iterator[tuple[_Frame, _Upright]]:
    """Sort by time within the reach of a decoder's reordering."""
    waiting: list[tuple[float, int, tuple[_Frame, _Upright]]] = []
    for index, item in enumerate(frames):
        seconds = item[0].seconds
        if waiting and seconds < waiting[0][0] - _CLOCK_RESTART_SECONDS:
            while waiting:
                yield heapq.heappop(waiting)[2]
        heapq.heappush(waiting, (seconds, index, item))
        if len(waiting) > _REORDER_FRAMES:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


def _upright(frame: av.VideoFrame) -> _Upright:
    """Read the display matrix: x' = a x + c y, y' = b x + d y, in 16.16 fixed point, row by row of three."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return _Upright(False, False, False)
    a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return _Upright(True, c < 0, b < 0)
    return _Upright(False, a < 0, d < 0)


def _average_rate(path: Path, times: list[float]) -> float:
    """Frames a second over the steps of the clock, leaving out steps where the clock starts again."""
    steps = [later - earlier for earlier, later in pairwise(times) if later > earlier]
    if steps:
        return round(len(steps) / math.fsum(steps), 6)
    with av.open(str(path), metadata_errors="replace") as container:
        rate = _video_stream(path, container).average_rate
        return float(rate) if rate else 1.0


def _read_image(path: Path) -> np.ndarray:
    """A still image, upright, over white where it is transparent, as uint8 [H, W, 3]."""
    try:
        with Image.open(path) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                # Sixteen-bit grey; Pillow's own conversion would clip it.
                grey = np.asarray(image).astype(np.float64) / 257.0
                return np.repeat(np.clip(grey + 0.5, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: damaged or not an image ({error})") from error
