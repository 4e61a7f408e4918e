"""Whole pictures of interlaced frames, whose even and odd lines were taken one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import av
from av.filter import Graph

from megavideo.data.clips.frame import Frame
from megavideo.errors import DataError


def deinterlaced(frames: Iterator[Frame]) -> Iterator[Frame]:
    """Frames in presentation order, those that are called interlaced by way of FFmpeg's bwdif, one for one.

    What it makes of a frame depends on that frame and on the ones before and after it. Raises DataError where it fails.
    """
    filtering: _Bwdif | None = None
    before: Frame | None = None
    for frame in frames:
        if filtering is None and frame.raw.interlaced_frame:
            filtering = _Bwdif(frame)
            if before is not None and filtering.takes(before):
                filtering.prepare(before)
        if filtering is None or not filtering.takes(frame):
            yield frame
        else:
            yield from filtering.push(frame)
        before = frame
    if filtering is not None:
        yield from filtering.finish()


class _Bwdif:
    """The filter, which gives each frame when it has the next one."""

    def __init__(self, frame: Frame) -> None:
        raw = frame.raw
        self._looks = _looks(raw)
        self._waiting: deque[Frame | None] = deque()
        graph = Graph()
        source = graph.add_buffer(width=raw.width, height=raw.height, format=raw.format, time_base=raw.time_base)
        bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
        sink = graph.add("buffersink")
        source.link_to(bwdif)
        bwdif.link_to(sink)
        try:
            graph.configure()
        except av.FFmpegError as error:
            raise DataError(f"its interlaced frames cannot be made whole ({error.strerror})") from error
        self._graph = graph

    def takes(self, frame: Frame) -> bool:
        """True for frames of the size and format that it was made for."""
        return _looks(frame.raw) == self._looks

    def prepare(self, frame: Frame) -> None:
        """Take a frame that was given out already."""
        self._waiting.append(None)
        self._graph.push(frame.raw)

    def push(self, frame: Frame) -> Iterator[Frame]:
        """Take a frame, and give out those that are ready."""
        self._waiting.append(frame)
        self._graph.push(frame.raw)
        yield from self._ready()

    def finish(self) -> Iterator[Frame]:
        """Give out the rest."""
        self._graph.push(None)
        yield from self._ready()

    def _ready(self) -> Iterator[Frame]:
        while self._waiting:
            try:
                raw: Any = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            except av.FFmpegError as error:
                raise DataError(f"its interlaced frames cannot be made whole ({error.strerror})") from error
            frame = self._waiting.popleft()
            if frame is not None:
                yield replace(frame, raw=raw, was_interlaced=frame.was_interlaced or frame.raw.interlaced_frame)


def _looks(raw: Any) -> tuple[int, int, str]:
    return raw.width, raw.height, raw.format.name
