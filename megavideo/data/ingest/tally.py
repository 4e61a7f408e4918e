"""What a report needs of all clips: counts, histograms and a few examples, gathered in one pass over them."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Generic, TypeVar

from megavideo.data.ingest.histogram import Histogram, Span
from megavideo.data.ingest.report import DroppedClip
from megavideo.data.ingest.rows import ClipRow

ASPECT, DURATION = "aspect ratio", "duration in seconds"  # no score is called so
_KEPT_SHOWN, _DROPPED_SHOWN, _FAULTS_SHOWN = 36, 18, 50
_DROPPED_LISTED = 100

Clip = TypeVar("Clip", ClipRow, DroppedClip)


class Spans:
    """Over which values each measure of the clips goes, before it is known which of them are kept."""

    def __init__(self) -> None:
        self.spans: dict[str, Span] = defaultdict(Span)

    def add(self, clip: ClipRow | DroppedClip) -> None:
        """See a clip."""
        for name, value in _measures(clip):
            self.spans[name].add(value)


class Examples(Generic[Clip]):
    """At most `most` of many clips: always the same ones, and a fair choice, by a hash of their ids."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen = 0
        self._chosen: list[tuple[int, int, Clip]] = []

    def offer(self, clip_id: str, clip: Clip) -> None:
        """Take the clip if its hash is among the least."""
        rank = -int.from_bytes(hashlib.sha256(clip_id.encode()).digest())
        self._seen += 1
        if len(self._chosen) < self._most:
            heapq.heappush(self._chosen, (rank, self._seen, clip))
        elif rank > self._chosen[0][0]:
            heapq.heapreplace(self._chosen, (rank, self._seen, clip))

    @property
    def clips(self) -> list[Clip]:
        """Those chosen, in the order in which they came."""
        return [clip for _, _, clip in sorted(self._chosen, key=lambda item: item[1])]


class Tally:
    """Counts and examples of clips that come in the order of files. Everything in it is small for any number of them.

    `faults` are the first whole inputs that gave no clip, of `num_faults`; `dropped` the first of all that is dropped.
    """

    def __init__(self, spans: Spans) -> None:
        self.histograms = {name: Histogram(span) for name, span in spans.spans.items()}
        self.num_clips = self.num_images = self.num_frames = 0
        self.video_seconds = 0.0
        self.inputs_kept = self.inputs_dropped = self.num_faults = 0
        self.dropped: list[DroppedClip] = []
        self.faults: list[DroppedClip] = []
        self.kept_examples: Examples[ClipRow] = Examples(_KEPT_SHOWN)
        self.dropped_examples: dict[str, Examples[DroppedClip]] = defaultdict(lambda: Examples(_DROPPED_SHOWN))
        self._kinds: Counter[str] = Counter()
        self._treated: Counter[str] = Counter()
        self._file = ""
        self._file_kept = False

    def add(self, clip: ClipRow | DroppedClip) -> None:
        """Count a clip, or an input that gave none."""
        kept = isinstance(clip, ClipRow)
        self._count_input(clip.file, kept)
        for name, value in _measures(clip):
            self.histograms[name].add(value, kept)
        if isinstance(clip, ClipRow):
            self._add_kept(clip)
        else:
            self._add_dropped(clip)

    @property
    def counts(self) -> dict[str, int]:
        """How many were dropped by each kind of reason, most first."""
        return dict(sorted(self._kinds.items(), key=lambda item: (-item[1], item[0])))

    @property
    def treated(self) -> dict[str, int]:
        """How many kept clips were treated in each way."""
        return dict(sorted(self._treated.items()))

    def _add_kept(self, row: ClipRow) -> None:
        self._treated.update(treatments(row))
        self.num_clips += 1
        self.num_images += row.is_image
        self.num_frames += row.frames
        self.video_seconds += 0.0 if row.is_image else row.frames / row.fps
        self.kept_examples.offer(row.clip_id, row)

    def _add_dropped(self, clip: DroppedClip) -> None:
        self._kinds[clip.kind] += 1
        if len(self.dropped) < _DROPPED_LISTED:
            self.dropped.append(clip)
        if clip.clip_id is not None:
            self.dropped_examples[clip.kind].offer(clip.clip_id, clip)
            return
        self.num_faults += 1
        if len(self.faults) < _FAULTS_SHOWN:
            self.faults.append(clip)

    def _count_input(self, file: str, kept: bool) -> None:
        if file != self._file:
            self._file, self._file_kept = file, False
            self.inputs_dropped += 1
        if kept and not self._file_kept:
            self._file_kept = True
            self.inputs_kept += 1
            self.inputs_dropped -= 1


def treatments(row: ClipRow) -> list[str]:
    """What was made of a clip's pixels, and what of its file is not in it."""
    said = {
        f"{row.transfer.upper()} mapped to SDR": row.transfer != "sdr",
        "deinterlaced": row.is_interlaced,
        "alpha put over white": row.has_alpha,
        "animated image read as video": row.is_animation,
        "first page of several": row.pages > 1,
        "of a file with a hole in time": row.holes > 0,
    }
    return [name for name, holds in said.items() if holds]


def _measures(clip: ClipRow | DroppedClip) -> Iterator[tuple[str, float]]:
    """What a clip adds to the histograms: the shape of kept ones, how long videos are, and all scores."""
    if isinstance(clip, ClipRow):
        yield ASPECT, clip.width * clip.pixel_aspect / clip.height
    seconds = clip.seconds if isinstance(clip, DroppedClip) else 0.0 if clip.is_image else clip.frames / clip.fps
    if seconds > 0:
        yield DURATION, seconds
    yield from (clip.scores or {}).items()
