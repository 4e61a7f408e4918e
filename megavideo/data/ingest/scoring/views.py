"""Frames of clips for models, read ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from megavideo.data.clips.media import iter_frames
from megavideo.data.clips.resize import resize_frames
from megavideo.data.clips.view import frame_numbers, view_size
from megavideo.data.ingest.rows import ClipRow

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def clip_frames(path: Path, row: ClipRow, count: int, longest_side: int) -> np.ndarray:
    """`count` frames of a clip spread evenly, uint8 [N, h, w, 3], in square pixels and without letterbox.

    A clip of fewer gives all. No side is longer than `longest_side`, and none is enlarged. DataError where the file is
    gone or damaged.
    """
    numbers = frame_numbers(row.frames, count)
    wanted = set(numbers)
    frames = iter_frames(path, row.start, numbers[-1] + 1, row.anchor)
    size = view_size(row.crop or (0, 0, row.width, row.height), row.pixel_aspect, longest_side)
    return resize_frames((frame for number, frame in enumerate(frames) if number in wanted), size)


def done_ahead(items: Iterable[Item], do: Callable[[Item], Outcome], threads: int) -> Iterator[tuple[Item, Outcome]]:
    """Each item with what `do` gives for it, in order; as many are worked on ahead as there are threads."""
    rest = iter(items)
    waiting: deque[tuple[Item, Future[Outcome]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        waiting.extend((item, pool.submit(do, item)) for item in islice(rest, threads))
        while waiting:
            item, future = waiting.popleft()
            outcome = future.result()
            waiting.extend((later, pool.submit(do, later)) for later in islice(rest, 1))
            yield item, outcome
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
