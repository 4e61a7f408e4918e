"""Inputs examined by several processes; a worker that dies takes nothing with it but what it was reading.

Each worker writes the part of an input whole before it takes the next. Where a worker dies, the inputs that were under
way are read again, one at a time: the one that kills its worker twice is recorded as such, and the others go on.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from megavideo.data.ingest.examine import Recipe, examine
from megavideo.data.ingest.part import CRASHED, Identity, Part, current_part, identify, write_part
from megavideo.errors import ConfigError, DataError
from megavideo.observe.progress import format_seconds

_INPUTS_A_WORKER = 8  # below so many, starting a process costs more than it saves
_WAITING_A_WORKER = 2
_LOG_EVERY_SECONDS = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One input to be examined: where it lies, its name below the root, where its part goes, and how."""

    path: Path
    file: str
    out: Path
    recipe: Recipe


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

    Raises DataError where a part cannot be written.
    """
    progress = _Progress(len(jobs))
    if workers == 0:
        for job in jobs:
            run_job(job)
            progress.done(job.file)
        return
    suspects: list[Job] = []
    rest = list(jobs)
    while rest:
        finished: set[str] = set()
        under_way: list[Job] = []
        try:
            for job in _pooled(rest, workers, under_way):
                finished.add(job.file)
                progress.done(job.file)
        except BrokenProcessPool:
            _log.warning("ingest: a worker died; %d inputs that were under way are read again", len(under_way))
            suspects += under_way
        gone = finished | {job.file for job in under_way}
        rest = [job for job in rest if job.file not in gone]
    for job in suspects:
        _run_alone(job)
        progress.done(job.file)


def run_job(job: Job) -> None:
    """Examine one input and write its part; DataError where that is not possible."""
    try:
        part = examine(job.path, job.file, job.recipe)
    except ConfigError as error:
        # It would not survive the way between processes.
        raise DataError(str(error)) from error
    if part.fault is not None:
        _log.warning("ingest: %s: %s", job.file, part.reason)
    _write(job, part)


def _pooled(jobs: Sequence[Job], workers: int, under_way: list[Job]) -> Iterator[Job]:
    """Jobs as they are finished. `under_way` always holds those that were given out and not yet finished."""
    waiting: dict[Future[None], Job] = {}
    todo = iter(jobs)
    # Spawned: a fork of a process with threads, as decoders and torch start them, can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        while True:
            while len(waiting) < workers * _WAITING_A_WORKER and (job := next(todo, None)) is not None:
                under_way.append(job)
                waiting[pool.submit(run_job, job)] = job
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                future.result()
                job = waiting.pop(future)
                under_way.remove(job)
                yield job


def _run_alone(job: Job) -> None:
    if current_part(job.out, job.path, job.file, job.recipe.key) is not None:
        return
    for _ in range(2):
        try:
            for _ in _pooled([job], 1, []):
                return
        except BrokenProcessPool:
            continue
    _log.warning("ingest: %s: the process that reads it dies", job.file)
    try:
        identity = identify(job.path, with_digest=True)
    except OSError:
        identity = Identity(0, 0, "")
    reason = "the process that reads it dies (out of memory, or a fault of the decoder)"
    _write(job, Part(job.file, job.recipe.key, identity, None, False, (), CRASHED, reason))


def _write(job: Job, part: Part) -> None:
    try:
        write_part(job.out, part)
    except OSError as error:
        raise DataError(
            f"{job.out}: cannot be written ({error.strerror}). Remedy: check out= and free space, then start again: "
            "what is done stays done"
        ) from error


def _end_with_parent() -> None:
    """Let a worker end when the process that started it was killed, and be quiet about an interrupt by keyboard."""
    import signal

    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
