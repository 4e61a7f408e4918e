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
# Fast, and averaging: what is scored must not alias.
_REDUCTION = Interpolation.AREA
# Below so many frames decoding from the beginning costs less than seeking; times equal to this are the same frame's.
_SEEK_FRAMES = 32
_SAME_TIME_SECONDS = 1e-4


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


def is_image(path: Path) -> bool:
    """True for a file whose suffix names a still image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_media(path: Path) -> bool:
    """True for a file whose suffix names video or a still image."""
    return path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES


def probe(path: Path) -> MediaInfo:
    """Decode the whole file and tell what it holds. Raises DataError with the reason where any frame is damaged."""
    if is_image(path):
        pixels = read_image(path)
        return MediaInfo(1, 1.0, pixels.shape[1], pixels.shape[0], 1.0, True)
    times: list[float] = []
    first: Frame | None = None
    for frame in iter_video(path):
        first = first or frame
        times.append(frame.seconds)
    if first is None:
        raise DataError(f"{path}: holds no video frame")
    return MediaInfo(len(times), video_rate(path, times), first.width, first.height, first.pixel_aspect, False)


def iter_video(path: Path) -> Iterator[Frame]:
    """Every frame of a video in presentation order, read to the end.

    Raises DataError where any frame is damaged, the size of the picture changes, or the file is cut short.
    """
    size: tuple[int, int] | None = None
    for index, frame in enumerate(_iter_video(path, whole=True)):
        if size is not None and size != (frame.width, frame.height):
            change = f"{size[0]}x{size[1]} to {frame.width}x{frame.height} at frame {index}"
            raise DataError(f"{path}: its size changes from {change}")
        size = frame.width, frame.height
        yield frame


@dataclass(frozen=True)
class Anchor:
    """The exact time of frame number `frame`, from which a reader can seek instead of decoding from the beginning."""

    frame: int
    seconds: float


def iter_frames(path: Path, start: int, count: int, anchor: Anchor | None = None) -> Iterator[np.ndarray]:
    """Frames `start` to `start + count - 1` of a clip, lazily, as uint8 [H, W, 3].

    An `anchor` at or before `start` saves decoding what lies before it, and changes nothing else. Raises DataError
    where the file is damaged or ends before.
    """
    if is_image(path):
        if start != 0 or count != 1:
            raise DataError(f"{path}: an image has one frame, and {count} from {start} are asked for")
        yield read_image(path)
        return
    given = 0
    for index, frame in _numbered(path, anchor if anchor and _SEEK_FRAMES <= anchor.frame <= start else None):
        if index < start:
            continue
        yield frame.rgb()
        given += 1
        if given == count:
            return
    raise DataError(f"{path}: ends at frame {start + given}, and {count} frames from {start} are asked for")


def decode_frames(path: Path, start: int, count: int) -> np.ndarray:
    """Frames `start` to `start + count - 1` of a clip as uint8 [T, H, W, 3]; DataError as `iter_frames`."""
    return np.stack(list(iter_frames(path, start, count)))


@dataclass(frozen=True)
class Frame:
    """A decoded frame: its time, and pixels that are converted only when asked for. Sizes are upright pixels.

    `pixel_aspect` is the width of an upright pixel over its height.
    """

    raw: av.VideoFrame
    seconds: float
    pixel_aspect: float
    upright: _Upright

    @property
    def width(self) -> int:
        """Pixels of a row."""
        return int(self.raw.height if self.upright.transpose else self.raw.width)

    @property
    def height(self) -> int:
        """Pixels of a column."""
        return int(self.raw.width if self.upright.transpose else self.raw.height)

    def rgb(self) -> np.ndarray:
        """The whole picture, uint8 [H, W, 3]."""
        return self.upright.apply(self.raw.to_ndarray(format="rgb24", interpolation=_CONVERSION, threads=1))

    def small(self, longest: int) -> np.ndarray:
        """The picture with its longer side scaled down to `longest` pixels, never up, uint8 [h, w, 3]."""
        scale = min(1.0, longest / max(self.raw.width, self.raw.height))
        width, height = (max(1, round(side * scale)) for side in (self.raw.width, self.raw.height))
        pixels = self.raw.to_ndarray(format="rgb24", width=width, height=height, interpolation=_REDUCTION, threads=1)
        return self.upright.apply(pixels)


def _numbered(path: Path, anchor: Anchor | None) -> Iterator[tuple[int, Frame]]:
    """Frames with their numbers: from the anchor where the file can be sought exactly, else from the beginning."""
    if anchor is not None:
        sought = _from_anchor(path, anchor)
        try:
            first = next(sought, None)
        except DataError:
            # A decoder that starts in the middle may fail on frames that lean on earlier ones.
            first = None
        if first is not None:
            yield anchor.frame, first
            yield from enumerate(sought, start=anchor.frame + 1)
            return
    yield from enumerate(_iter_video(path, whole=False))


def _from_anchor(path: Path, anchor: Anchor) -> Iterator[Frame]:
    """Frames from the anchor's on; none where seeking does not meet its exact time."""
    found = False
    for frame in _iter_video(path, whole=False, seek_seconds=anchor.seconds):
        if not found:
            if frame.seconds > anchor.seconds + _SAME_TIME_SECONDS:
                return
            found = frame.seconds >= anchor.seconds - _SAME_TIME_SECONDS
        if found:
            yield frame


def _iter_video(path: Path, whole: bool, seek_seconds: float | None = None) -> Iterator[Frame]:
    """Decoded frames in presentation order. Raises DataError on anything that cannot be decoded.

    With `whole`, the end of the file is compared with the duration that its header tells. With `seek_seconds` decoding
    begins at the nearest key frame before.
    """
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = _video_stream(path, container)
            if seek_seconds is not None:
                container.seek(int(seek_seconds / float(stream.time_base)), stream=stream)
            packets = _whole_packets(path, container, stream) if whole else _demuxed(container, stream)
            yield from _presentation_order(_decoded(path, packets, stream))
    except (FileNotFoundError, PermissionError) as error:
        raise _cannot_read(path, error) from error
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: damaged or not a video ({reason})") from error


def _video_stream(path: Path, container: Any) -> Any:
    # A cover picture is a video stream too, of one frame.
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise DataError(f"{path}: holds no video stream")
    return streams[0]


def _demuxed(container: Any, *streams: Any) -> Iterator[Any]:
    """Packets of these streams, or of all."""
    try:
        yield from container.demux(*streams)
    except IndexError:
        # PyAV may stumble, after all packets, over a stream that began in the middle of the file and is not asked for.
        return


def _whole_packets(path: Path, container: Any, stream: Any) -> Iterator[Any]:
    """The packets of `stream`; DataError at the end where no stream lasts as long as the header tells."""
    last = 0.0
    for packet in _demuxed(container):
        if packet.pts is not None:
            last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index:
            yield packet
    if container.duration:
        told = (container.duration + (container.start_time or 0)) / av.time_base
        frame = 1.0 / float(stream.average_rate) if stream.average_rate else 0.0
        if last + frame < told - max(_SLACK_SECONDS, _SLACK_SHARE * told):
            raise DataError(f"{path}: cut short (it ends after {last:.2f} s, and its header tells {told:.2f} s)")


def _decoded(path: Path, packets: Iterator[Any], stream: Any) -> Iterator[Frame]:
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
            upright = _upright(raw)
            yield Frame(raw, seconds, 1.0 / aspect if upright.transpose else aspect, upright)
            index += 1


def _presentation_order(frames: Iterator[Frame]) -> Iterator[Frame]:
    """Sort by time within the reach of a decoder's reordering."""
    waiting: list[tuple[float, int, Frame]] = []
    for index, frame in enumerate(frames):
        seconds = frame.seconds
        if waiting and seconds < waiting[0][0] - _CLOCK_RESTART_SECONDS:
            while waiting:
                yield heapq.heappop(waiting)[2]
        heapq.heappush(waiting, (seconds, index, frame))
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


def video_rate(path: Path, times: list[float]) -> float:
    """Frames a second over the steps of the clock, leaving out steps where the clock starts again.

    A single frame has the rate that the header of the file tells. Raises DataError for a clock that jumps by weeks.
    """
    steps = [later - earlier for earlier, later in pairwise(times) if later > earlier]
    if steps:
        seconds = math.fsum(steps)
        rate = round(len(steps) / seconds, 6)
        if rate <= 0.0:
            raise DataError(f"{path}: damaged (its clock runs {seconds:.3g} s over {len(times)} frames)")
        return rate
    with av.open(str(path), metadata_errors="replace") as container:
        rate = _video_stream(path, container).average_rate
        return float(rate) if rate else 1.0


def read_image(path: Path) -> np.ndarray:
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
    except (FileNotFoundError, PermissionError) as error:
        raise _cannot_read(path, error) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: damaged or not an image ({error})") from error


def _cannot_read(path: Path, error: OSError) -> DataError:
    """A file that is gone or barred is not damaged."""
    return DataError(f"{path}: cannot be read ({error.strerror})")
