"""The measuring of clips by models: those of this process's share that pass all else, and only what is not known."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megavideo.config.rules.scores import models_on
from megavideo.config.schema.clip_scores import ScoresConfig
from megavideo.data.clips.content import content_mark
from megavideo.data.clips.stored import CacheError, ClipPlace, opened_clip
from megavideo.data.ingest.rows import ClipRow
from megavideo.data.ingest.scoring.codec_motion import CodecMotion
from megavideo.data.ingest.scoring.kept import KeptValues, read_values, write_values
from megavideo.data.ingest.scoring.measure import EMBEDDING, ClipFrames, FileMeasure, Measure, value_key
from megavideo.data.ingest.scoring.views import clip_frames, done_ahead
from megavideo.errors import DataError, StoreUnreachable

_CLIPS = 64  # of one file, whose frames are in memory at a time
_READERS = 2
_LOG_EVERY_SECONDS = 5.0

_log = logging.getLogger(__name__)


def check_measures(cfg: ScoresConfig, measures: Sequence[Measure]) -> None:
    """Raise ValueError where `measures` are not those that the settings ask for."""
    asked = set(models_on(cfg))
    if asked != {measure.name for measure in measures}:
        raise ValueError(f"measures {sorted(asked)} are asked for, and {[one.name for one in measures]} were given")


@dataclass(frozen=True)
class _Task:
    """Clips of one file, and which of the measures each lacks."""

    file: str
    rows: list[ClipRow]
    lacking: list[set[str]]


@dataclass
class _Seen:
    """What was read for a task: frames of each clip (None where no measure needs any), and values by the file alone."""

    task: _Task
    frames: list[np.ndarray | None] = field(default_factory=list)
    values: list[dict[str, float | None]] = field(default_factory=list)
    faults: list[str | None] = field(default_factory=list)

    @property
    def num_frames(self) -> int:
        """Frames of all clips."""
        return sum(len(frames) for frames in self.frames if frames is not None)


class Scoring:
    """The measures of a run, and what is kept of them under `out`."""

    def __init__(self, cfg: ScoresConfig, measures: Sequence[Measure], out: Path) -> None:
        self._cfg = cfg
        self._measures = measures
        self._files: tuple[FileMeasure, ...] = (CodecMotion(),) if cfg.codec_motion.enabled else ()
        self._all: tuple[Measure | FileMeasure, ...] = (*measures, *self._files)
        self._out = out
        self._view = (cfg.frames, cfg.longest_side)

    @property
    def is_on(self) -> bool:
        """Whether anything is measured."""
        return bool(self._all)

    def known(self, file: str) -> dict[str, KeptValues]:
        """What is kept of the clips of an input, by their ids."""
        return read_values(self._out, file) if self.is_on else {}

    def values(self, kept: KeptValues) -> dict[str, float | None]:
        """The values of a clip by the measures of this run."""
        return {measure.name: kept.values[measure.name][1] for measure in self._all if measure.name != EMBEDDING}

    def embedding(self, kept: KeptValues) -> np.ndarray | None:
        """The vector of a clip, where this run compares them."""
        return kept.embedding if any(measure.name == EMBEDDING for measure in self._measures) else None

    def lacking(self, kept: KeptValues | None, row: ClipRow) -> set[str]:
        """Names of the measures that a clip has no value of yet, or one of other weights, settings or captions."""
        names = set()
        for measure in self._all:
            key = value_key(measure, row, self._view)
            if kept is None:
                known = False
            elif measure.name == EMBEDDING:
                known = kept.embedding is not None and kept.embedding_key == key
            else:
                known = kept.values.get(measure.name, ("", None))[0] == key
            names |= set() if known else {measure.name}
        return names

    def run(self, place: ClipPlace, files: Iterable[str], clips_of: Callable[[str], list[ClipRow]]) -> None:
        """Measure the clips of `files` that lack anything; `clips_of` gives those of a file that pass all else.

        A clip that cannot be read is noted. Raises StoreUnreachable and CacheError as reading does, OSError where what
        was measured cannot be written, and what measures raise.
        """
        if not self.is_on:
            return
        done, begin, last = 0, time.monotonic(), time.monotonic()
        pending: list[_Seen] = []
        for _, seen in done_ahead(self._tasks(files, clips_of), lambda task: self._read(place, task), _READERS):
            pending.append(seen)
            if sum(one.num_frames for one in pending) >= self._cfg.batch:
                self._finish(pending)
                pending = []
            done += len(seen.task.rows)
            if time.monotonic() - last >= _LOG_EVERY_SECONDS:
                last = time.monotonic()
                _log.info("ingest: %d clips scored, %.1f/s", done, done / (last - begin))
        self._finish(pending)
        _log.info("ingest: %d clips scored in %.1f s", done, time.monotonic() - begin)

    def _tasks(self, files: Iterable[str], clips_of: Callable[[str], list[ClipRow]]) -> Iterator[_Task]:
        for file in files:
            kept = self.known(file)
            found = [(row, self.lacking(kept.get(row.clip_id), row)) for row in clips_of(file)]
            todo = [(row, names) for row, names in found if names]
            for first in range(0, len(todo), _CLIPS):
                some = todo[first : first + _CLIPS]
                yield _Task(file, [row for row, _ in some], [names for _, names in some])

    def _read(self, place: ClipPlace, task: _Task) -> _Seen:
        seen = _Seen(task, values=[{} for _ in task.rows])
        try:
            with opened_clip(place, task.file) as path:
                if task.rows[0].content and content_mark(path) != task.rows[0].content:
                    raise DataError("has changed since it was measured. Remedy: run ingest again")
                self._measure_file(path, seen)
                for row, names in zip(task.rows, task.lacking, strict=True):
                    frames, fault = self._frames(path, row, names)
                    seen.frames.append(frames)
                    seen.faults.append(fault)
        except (StoreUnreachable, CacheError):
            raise
        except (DataError, OSError) as error:
            seen.frames, seen.faults = [None] * len(task.rows), [str(error)] * len(task.rows)
        return seen

    def _measure_file(self, path: Path, seen: _Seen) -> None:
        for measure in self._files:
            if any(measure.name in names for names in seen.task.lacking):
                for values, value in zip(seen.values, measure.measure_file(path, seen.task.rows), strict=True):
                    values[measure.name] = value

    def _frames(self, path: Path, row: ClipRow, names: set[str]) -> tuple[np.ndarray | None, str | None]:
        if not names & {measure.name for measure in self._measures}:
            return None, None
        try:
            return clip_frames(path, row, self._cfg.frames, self._cfg.longest_side), None
        except DataError as error:
            return None, str(error).replace(f"{path}: ", "")

    def _finish(self, pending: Sequence[_Seen]) -> None:
        """Have the measures see what was read, and keep what they say."""
        vectors: dict[str, np.ndarray] = {}
        for measure in self._measures:
            clips, homes = [], []
            for seen in pending:
                for place, row in enumerate(seen.task.rows):
                    frames = seen.frames[place]
                    if frames is not None and measure.name in seen.task.lacking[place]:
                        clips.append(ClipFrames(row, frames))
                        homes.append((seen, place))
            found: Sequence[float | np.ndarray] = measure.measure(clips) if clips else []
            for (seen, place), value in zip(homes, found, strict=True):
                if isinstance(value, np.ndarray):
                    vectors[seen.task.rows[place].clip_id] = value
                else:
                    seen.values[place][measure.name] = value
        for seen in pending:
            self._keep(seen, vectors)

    def _keep(self, seen: _Seen, vectors: dict[str, np.ndarray]) -> None:
        clips = self.known(seen.task.file)
        keys = {measure.name: measure for measure in self._all}
        for place, row in enumerate(seen.task.rows):
            kept = clips.setdefault(row.clip_id, KeptValues())
            kept.fault = seen.faults[place]
            for name, value in seen.values[place].items():
                rounded = None if value is None else round(value, 4)
                kept.values[name] = value_key(keys[name], row, self._view), rounded
            if row.clip_id in vectors:
                kept.embedding = vectors[row.clip_id].astype(np.float16)
                kept.embedding_key = value_key(keys[EMBEDDING], row, self._view)
            if kept.fault is not None:
                _log.warning("ingest: %s from frame %d: %s", row.file, row.start, kept.fault)
        write_values(self._out, seen.task.file, clips)
