"""Inputs examined by this process or by several, each of which writes the part of an input before it takes the next."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megavideo.data.ingest.examine import Recipe, examine
from megavideo.data.ingest.part import CRASHED, Identity, Part, identify, write_part
from megavideo.data.job_pool import Work, done_by_processes
from megavideo.errors import ConfigError, DataError
from megavideo.observe.progress import format_seconds

_INPUTS_A_WORKER = 8  # below so many, starting a process costs more than it saves
_LOG_EVERY_SECONDS = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One input to be examined: its name below the root, where its part goes, and how. There may be very many."""

    root: Path
    file: str
    out: Path
    recipe: Recipe

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.root / self.file


def choose_workers(asked: int | None, num_jobs: int) -> int:
    """Processes for so many jobs: what was asked, else one a core; 0 where the jobs are too few to need any."""
    if asked is not None:
        return min(asked, num_jobs)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    workers = min(cores, num_jobs // _INPUTS_A_WORKER)
    return workers if workers > 1 else 0


def run_jobs(jobs: Sequence[Job], workers: int) -> None:
    """Examine every input and write its part, in `workers` processes, or in this one for 0.

    An input that ends its process twice is recorded as such. Raises DataError where a part cannot be written.
    """
    progress = _Progress(len(jobs))
    if workers == 0:
        for job in jobs:
            run_job(job)
            progress.done(job.file)
        return
    for job in done_by_processes(jobs, Work(run_job, _begin_worker), workers, _record_deadly):
        progress.done(job.file)


def run_job(job: Job) -> None:
    """Examine one input and write its part; DataError where that is not possible."""
    try:
        part = examine(job.path, job.file, job.recipe)
    except ConfigError as error:
        # It would not survive the way between processes.
        raise DataError(str(error)) from error
    except Exception as error:  # noqa: BLE001 - told with its traceback, recorded, and tried again by the next run
        # A decoder may fail at a damaged file in any way; one input of millions is not to end the others.
        _log.exception("ingest: %s: a defect of a decoder or of megavideo", job.file)
        part = _crashed(job, f"reading it failed ({type(error).__name__}: {error})")
    if part.fault is not None:
        _log.warning("ingest: %s: %s", job.file, part.reason)
    _write(job, part)


def _record_deadly(job: Job) -> None:
    _log.warning("ingest: %s: the process that reads it dies", job.file)
    _write(job, _crashed(job, "the process that reads it dies (out of memory, or a fault of the decoder)"))


def _crashed(job: Job, reason: str) -> Part:
    try:
        identity = identify(job.path)
    except OSError:
        identity = Identity()
    return Part(job.file, job.recipe.key, identity, None, False, (), CRASHED, reason)


def _write(job: Job, part: Part) -> None:
    try:
        write_part(job.out, part)
    except OSError as error:
        raise DataError(
            f"{job.out}: cannot be written ({error.strerror}). Remedy: check out= and free space, then start again: "
            "what is done stays done"
        ) from error


def _begin_worker() -> None:
    import cv2

    cv2.setNumThreads(1)


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
