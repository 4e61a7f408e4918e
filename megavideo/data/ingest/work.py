"""Inputs examined by this process or by several, each of which writes the part of an input before it takes the next."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from megavideo.border.names import beneath
from megavideo.border.refused import Refused
from megavideo.data.clips.stored import ClipPlace
from megavideo.data.ingest.examine import Recipe, examine
from megavideo.data.ingest.part import CRASHED, UNREADABLE, Identity, Part, identify, write_part
from megavideo.data.ingest.stored_part import examine_stored
from megavideo.data.job_pool import Work, done_by_processes
from megavideo.errors import ConfigError, DataError
from megavideo.observe.progress import format_seconds

_INPUTS_A_WORKER = 8  # below so many, starting a process costs more than it saves
_LOG_EVERY_SECONDS = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One input to be examined: its name, where its part goes, and how. There may be very many.

    One of a store has the `version` with which it was listed.
    """

    file: str
    out: Path
    recipe: Recipe
    version: str = ""


def choose_workers(asked: int | None, num_jobs: int) -> int:
    """Processes for so many jobs: what was asked, else one a core; 0 where the jobs are too few to need any."""
    if asked is not None:
        return min(asked, num_jobs)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    workers = min(cores, num_jobs // _INPUTS_A_WORKER)
    return workers if workers > 1 else 0


def run_jobs(place: ClipPlace, jobs: Sequence[Job], workers: int) -> None:
    """Examine every input of `place` and write its part, in `workers` processes, or in this one for 0.

    An input that ends its process twice is recorded as such. Raises DataError where a part cannot be written.
    """
    progress = _Progress(len(jobs))
    if workers == 0:
        for job in jobs:
            run_job(place, job)
            progress.done(job.file)
        return
    work = Work(_run_in_worker, _begin_worker, (place,))
    for job in done_by_processes(jobs, work, workers, lambda job: _record_deadly(place, job)):
        progress.done(job.file)


def run_job(place: ClipPlace, job: Job) -> None:
    """Examine one input and write its part; DataError where that is not possible."""
    try:
        part = _examined(place, job)
    except ConfigError as error:
        # It would not survive the way between processes.
        raise DataError(str(error)) from error
    except DataError:
        raise  # what no input is to blame for: a store that is away, a full disk
    except Exception as error:  # noqa: BLE001 - told with its traceback, recorded, and tried again by the next run
        # A decoder may fail at a damaged file in any way; one input of millions is not to end the others.
        _log.exception("ingest: %s: a defect of a decoder or of megavideo", job.file)
        part = _crashed(place, job, f"reading it failed ({type(error).__name__}: {error})")
    if part.fault is not None:
        _log.warning("ingest: %s: %s", job.file, part.reason)
    _write(job, part)


def _examined(place: ClipPlace, job: Job) -> Part:
    if isinstance(place, Path):
        try:
            path = beneath(place, job.file)
        except Refused as error:
            return Part(job.file, job.recipe.key, Identity(), None, False, (), UNREADABLE, f"is not read: {error}")
        return examine(path, job.file, job.recipe)
    return examine_stored(place, job.file, job.version, job.recipe)


def _record_deadly(place: ClipPlace, job: Job) -> None:
    _log.warning("ingest: %s: the process that reads it dies", job.file)
    _write(job, _crashed(place, job, "the process that reads it dies (out of memory, or a fault of the decoder)"))


def _crashed(place: ClipPlace, job: Job, reason: str) -> Part:
    identity = Identity(version=job.version)
    if isinstance(place, Path):
        with suppress(OSError, Refused):
            identity = identify(place / job.file)
    return Part(job.file, job.recipe.key, identity, None, False, (), CRASHED, reason)


def _write(job: Job, part: Part) -> None:
    try:
        write_part(job.out, part)
    except OSError as error:
        raise DataError(
            f"{job.out}: cannot be written ({error.strerror}). Remedy: check out= and free space, then start again: "
            "what is done stays done"
        ) from error


class _Worker:
    """Where this worker process reads from; a store's connection is made once and serves all its jobs."""

    place: ClipPlace | None = None


def _begin_worker(place: ClipPlace) -> None:
    import cv2

    cv2.setNumThreads(1)
    _Worker.place = place


def _run_in_worker(job: Job) -> None:
    assert _Worker.place is not None
    run_job(_Worker.place, job)


class _Progress:
    """Logs how many inputs are done, every few seconds."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._begin = self._last = time.monotonic()

    def done(self, file: str) -> None:
        """Count an input."""
        self._done += 1
        now = time.monotonic()
        if now - self._last >= _LOG_EVERY_SECONDS and self._done < self._total:
            self._last = now
            rate = self._done / (now - self._begin)
            left = format_seconds((self._total - self._done) / rate)
            _log.info("ingest: %d of %d inputs, %.1f/s, ETA %s (%s)", self._done, self._total, rate, left, file)
        elif self._done == self._total:
            _log.info("ingest: %d inputs examined in %s", self._done, format_seconds(now - self._begin))
