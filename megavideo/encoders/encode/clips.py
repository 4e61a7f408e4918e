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
from megavideo.data.clips.media import iter_frames
from megavideo.data.clips.resize import FrameSize, FrameWindow, fit_size, fit_window, resize_frames
from megavideo.data.dataset.dataset import DroppedClip
from megavideo.data.ingest import ClipList, ClipRow
from megavideo.encoders.encode.sorted_rows import order_key
from megavideo.errors import DataError

_READERS = 2
_READ_AHEAD = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipLimits:
    """Largest area in pixels and most frames of a clip, and the latent patch (t, h, w) it must divide by."""

    area: int
    max_frames: int
    patch: tuple[int, int, int]


@dataclass(frozen=True)
class PlannedClip:
    """A clip with the window and size at which it is encoded."""

    row: ClipRow
    path: Path
    window: FrameWindow
    size: FrameSize

    @property
    def pixels(self) -> tuple[int, int, int]:
        """Frames, height and width of the encoded clip."""
        return self.window.count, self.size.height, self.size.width


@dataclass(frozen=True)
class ClipSource:
    """Where clips lie, and what they are made to fit: limits, and the pixels of a latent cell in time and space."""

    root: Path
    limits: ClipLimits
    time_ratio: int
    space_ratio: int

    def plan(self, row: ClipRow) -> PlannedClip:
        """Window and size of a clip, without opening its file; DataError where it does not fit."""
        patch_t, patch_h, patch_w = self.limits.patch
        window = fit_window(row.frames, self.limits.max_frames, self.time_ratio, patch_t)
        multiple = (self.space_ratio * patch_h, self.space_ratio * patch_w)
        size = fit_size(row.width, row.height, row.pixel_aspect, self.limits.area, multiple)
        return PlannedClip(row, self.root / row.file, window, size)

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

    Raises DataError where the file is gone, damaged or another one than was ingested.
    """
    row = clip.row
    _check_content(clip)
    frames = iter_frames(clip.path, row.start + clip.window.start, clip.window.count, row.anchor)
    if row.crop is not None:
        frames = (_cropped(frame, clip, row.crop) for frame in frames)
    return torch.from_numpy(np.ascontiguousarray(resize_frames(frames, clip.size)))


def _check_content(clip: PlannedClip) -> None:
    try:
        same = not clip.row.content or content_mark(clip.path) == clip.row.content
    except OSError as error:
        raise DataError(f"{clip.path}: cannot be read ({error.strerror})") from error
    if not same:
        raise DataError(f"{clip.path}: has changed since it was ingested. Remedy: run ingest again")


def _cropped(frame: np.ndarray, clip: PlannedClip, crop: tuple[int, int, int, int]) -> np.ndarray:
    """The part `crop` (left, top, right, bottom) of a frame [H, W, 3]."""
    left, top, right, bottom = crop
    height, width = frame.shape[:2]
    if right > width or bottom > height:
        raise DataError(
            f"{clip.path}: its picture of {width}x{height} does not hold the crop {list(crop)}: it has changed since "
            "it was ingested. Remedy: run ingest again"
        )
    return frame[top:bottom, left:right]


def to_video(frames: torch.Tensor) -> torch.Tensor:
    """Video [3, T, H, W] float32 in -1..1 of frames uint8 [T, H, W, 3]."""
    return (frames.float() / 127.5 - 1.0).permute(3, 0, 1, 2).contiguous()


def read_ahead(clips: Sequence[PlannedClip]) -> Iterator[tuple[PlannedClip, torch.Tensor | DataError]]:
    """Each clip with its video [3, T, H, W], or with the fault met; a few clips are read in advance."""
    pool = ThreadPoolExecutor(_READERS)
    waiting: deque[tuple[PlannedClip, Future[torch.Tensor]]] = deque()
    try:
        for clip in clips:
            waiting.append((clip, pool.submit(read_clip, clip)))
            if len(waiting) > _READ_AHEAD:
                yield _outcome(*waiting.popleft())
        while waiting:
            yield _outcome(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def fitting_videos(clips: Iterable[PlannedClip], count: int) -> Iterator[torch.Tensor]:
    """Up to `count` readable clips as videos, always the same ones: by the order of a hash of their ids."""
    first = heapq.nsmallest(count, clips, key=lambda clip: order_key(clip.row.clip_id))
    for clip, video in read_ahead(first):
        if isinstance(video, DataError):
            _log.warning("encode: %s is not used for fitting: %s", clip.row.file, video)
        else:
            yield video


def _outcome(clip: PlannedClip, frames: Future[torch.Tensor]) -> tuple[PlannedClip, torch.Tensor | DataError]:
    try:
        return clip, to_video(frames.result())
    except DataError as error:
        return clip, error
