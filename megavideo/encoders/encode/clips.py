"""From ingested clips to video tensors: which window and size of each clip is encoded, and its reading ahead."""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from megavideo.data.clips.content import content_mark
from megavideo.data.clips.media import iter_frames, iter_window
from megavideo.data.clips.resample import FrameUse, Resampling, at_rate, num_frames_at
from megavideo.data.clips.resize import FrameSize, FrameWindow, fit_size, fit_window, resize_frames
from megavideo.data.clips.stored import CacheError, ClipPlace, clip_address, opened_clip
from megavideo.data.dataset.dataset import DroppedClip
from megavideo.data.ingest import ClipList, ClipRow
from megavideo.encoders.encode.sorted_rows import order_key
from megavideo.errors import DataError, StoreUnreachable

_READERS = 2
_READ_AHEAD = 4
_Reading = Future[tuple[torch.Tensor, FrameUse]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipLimits:
    """Largest area in pixels and most frames of a clip, and the latent patch (t, h, w) it must divide by.

    Without `resampling` videos keep the rates that they have.
    """

    area: int
    max_frames: int
    patch: tuple[int, int, int]
    resampling: Resampling | None = None


@dataclass(frozen=True)
class PlannedClip:
    """A clip with the window and size at which it is encoded; its file must lie under `root`.

    With `resampling` the window is one of the clip at that rate.
    """

    row: ClipRow
    root: ClipPlace
    window: FrameWindow
    size: FrameSize
    resampling: Resampling | None = None

    @property
    def address(self) -> str:
        """Where its file lies, as messages tell it."""
        return clip_address(self.root, self.row.file)

    @property
    def pixels(self) -> tuple[int, int, int]:
        """Frames, height and width of the encoded clip."""
        return self.window.count, self.size.height, self.size.width

    @property
    def fps(self) -> float:
        """Frames a second at which it is encoded."""
        return self.row.fps if self.resampling is None else self.resampling.fps


@dataclass(frozen=True)
class ReadVideo:
    """What was read of a clip, `video` [3, T, H, W] float32 in -1..1, and which of its frames that shows."""

    video: torch.Tensor
    use: FrameUse


@dataclass(frozen=True)
class ClipSource:
    """Where clips lie, and what they are made to fit: limits, and the pixels of a latent cell in time and space."""

    root: ClipPlace
    limits: ClipLimits
    time_ratio: int
    space_ratio: int

    def plan(self, row: ClipRow) -> PlannedClip:
        """Window and size of a clip, without opening its file; DataError where it does not fit."""
        patch_t, patch_h, patch_w = self.limits.patch
        resampling = None if row.is_image else self.limits.resampling
        if resampling is not None and resampling.is_too_slow(row.fps):
            what = f"has {row.fps:.4g} frames a second, and would repeat frames"
            raise _too_slow(clip_address(self.root, row.file), what, resampling)
        frames = row.frames if resampling is None else num_frames_at(row.frames, row.fps, resampling.fps)
        window = fit_window(frames, self.limits.max_frames, self.time_ratio, patch_t)
        multiple = (self.space_ratio * patch_h, self.space_ratio * patch_w)
        size = fit_size(row.width, row.height, row.pixel_aspect, self.limits.area, multiple)
        return PlannedClip(row, self.root, window, size, resampling)

    def fitting(self, rows: Iterable[ClipRow], dropped: list[DroppedClip] | None = None) -> Iterator[PlannedClip]:
        """The rows that fit, planned; why others do not is added to `dropped`."""
        for row in rows:
            try:
                yield self.plan(row)
            except DataError as error:
                if dropped is not None:
                    dropped.append(DroppedClip(row.file, str(error)))


def plan_clips(
    clips: ClipList, limits: ClipLimits, time_ratio: int, space_ratio: int
) -> tuple[list[PlannedClip], list[DroppedClip]]:
    """Window and size of every clip, without opening a file; what does not fit is dropped with its reason."""
    dropped: list[DroppedClip] = []
    planned = list(ClipSource(clips.root, limits, time_ratio, space_ratio).fitting(clips.rows, dropped))
    return planned, dropped


def read_clip(clip: PlannedClip) -> torch.Tensor:
    """The planned window of a clip, without letterbox, as uint8 [T, H, W, 3].

    Raises DataError where the file is gone, damaged or another one than was ingested, and where more of the frames
    would be repeats than is allowed; StoreUnreachable where a store stays away, and CacheError where its copy cannot be
    written.
    """
    return _read(clip)[0]


def _read(clip: PlannedClip) -> tuple[torch.Tensor, FrameUse]:
    row, numbers = clip.row, list[int]()
    with opened_clip(clip.root, row.file) as path:
        try:
            _check_file(path, clip)
            frames = _pictures(path, clip, numbers)
            if row.crop is not None:
                crop = row.crop
                frames = (_cropped(frame, clip, crop) for frame in frames)
            pixels = torch.from_numpy(np.ascontiguousarray(resize_frames(frames, clip.size)))
        except DataError as error:
            raise DataError(str(error).replace(str(path), clip.address)) from error
    use = FrameUse.of(row.frames, numbers)
    if clip.resampling is not None and clip.resampling.repeats_too_much(use):
        what = f"{use.doubled} of {clip.window.count} frames of its window would repeat the one before"
        raise _too_slow(clip.address, what, clip.resampling)
    return pixels, use


def _too_slow(address: str, what: str, resampling: Resampling) -> DataError:
    limit = f"more than max_doubled={resampling.max_doubled:g} of them"
    rate = f"fps={resampling.fps:g}"
    return DataError(f"{address}: {what} at {rate}, {limit}. Remedy: a lower fps, or a higher max_doubled")


def _pictures(path: Path, clip: PlannedClip, numbers: list[int]) -> Iterator[np.ndarray]:
    """The frames of a clip's window, uint8 [H, W, 3] each; their numbers in the clip are added to `numbers`."""
    row, window = clip.row, clip.window
    if clip.resampling is None:
        numbers += range(window.start, window.start + window.count)
        yield from iter_frames(path, row.start + window.start, window.count, row.anchor)
        return
    picture = np.empty(0, np.uint8)
    frames = iter_window(path, row.start, row.frames, row.anchor)
    for number, frame in at_rate(frames, clip.resampling.fps, window):
        if not numbers or number != numbers[-1]:
            picture = frame.rgb()
        numbers.append(number)
        yield picture


def _check_file(path: Path, clip: PlannedClip) -> None:
    try:
        same = not clip.row.content or content_mark(path) == clip.row.content
    except OSError as error:
        raise DataError(f"{clip.address}: cannot be read ({error.strerror})") from error
    if not same:
        raise DataError(f"{clip.address}: has changed since it was ingested. Remedy: run ingest again")


def _cropped(frame: np.ndarray, clip: PlannedClip, crop: tuple[int, int, int, int]) -> np.ndarray:
    """The part `crop` (left, top, right, bottom) of a frame [H, W, 3]."""
    left, top, right, bottom = crop
    height, width = frame.shape[:2]
    if right > width or bottom > height:
        raise DataError(
            f"{clip.address}: its picture of {width}x{height} does not hold the crop {list(crop)}: it has changed "
            "since it was ingested. Remedy: run ingest again"
        )
    return frame[top:bottom, left:right]


def to_video(frames: torch.Tensor) -> torch.Tensor:
    """Video [3, T, H, W] float32 in -1..1 of frames uint8 [T, H, W, 3]."""
    return (frames.float() / 127.5 - 1.0).permute(3, 0, 1, 2).contiguous()


def read_ahead(clips: Sequence[PlannedClip]) -> Iterator[tuple[PlannedClip, ReadVideo | DataError]]:
    """Each clip with what was read of it, or with the fault met; a few clips are read in advance."""
    pool = ThreadPoolExecutor(_READERS)
    waiting: deque[tuple[PlannedClip, _Reading]] = deque()
    try:
        for clip in clips:
            waiting.append((clip, pool.submit(_read, clip)))
            if len(waiting) > _READ_AHEAD:
                yield _outcome(*waiting.popleft())
        while waiting:
            yield _outcome(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def fitting_videos(clips: Iterable[PlannedClip], count: int) -> Iterator[torch.Tensor]:
    """Up to `count` readable clips as videos, always the same ones: by the order of a hash of their ids."""
    first = heapq.nsmallest(count, clips, key=lambda clip: order_key(clip.row.clip_id))
    for clip, read in read_ahead(first):
        if isinstance(read, DataError):
            _log.warning("encode: %s is not used for fitting: %s", clip.row.file, read)
        else:
            yield read.video


def _outcome(clip: PlannedClip, reading: _Reading) -> tuple[PlannedClip, ReadVideo | DataError]:
    try:
        frames, use = reading.result()
        return clip, ReadVideo(to_video(frames), use)
    except (StoreUnreachable, CacheError):
        raise  # no clip is to blame, and the next start goes on
    except DataError as error:
        return clip, error
