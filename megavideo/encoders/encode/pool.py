"""Units encoded by this process or by several.

A worker loads the encoders once. On a machine with GPUs the workers are dealt to them in turn.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megavideo.config.schema.prepare import GivenTask
from megavideo.data.job_pool import Work, done_by_processes
from megavideo.data.storage.open import open_storage
from megavideo.encoders.encode.clips import ClipSource
from megavideo.encoders.encode.plan import PageReader
from megavideo.encoders.encode.unit import UnitEncoder, UnitJob
from megavideo.encoders.folder import load_encoders
from megavideo.errors import ConfigError, DataError
from megavideo.observe.progress import format_seconds

_LOG_EVERY_SECONDS = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodeSetting:
    """What a worker is made from: clips, where to, its local encoders, the place's key, and where shards are made.

    For the tasks `given` what they give of a clip is encoded too.
    """

    source: ClipSource
    out: str
    encoders: Path
    key: str
    staging: Path
    shard_bytes: int
    given: tuple[GivenTask, ...] = ()


def choose_workers(asked: int | None, num_jobs: int) -> int:
    """Processes for so many units: what was asked, else one a GPU; 0 where this process does it alone."""
    workers = min(torch.cuda.device_count() if asked is None else asked, num_jobs)
    return workers if workers > 1 else 0


def run_units(jobs: Sequence[UnitJob], setting: EncodeSetting, workers: int) -> None:
    """Encode every unit, in `workers` processes, or in this one for 0.

    Raises DataError where one cannot be written, or ends its worker twice; what is done stays done.
    """
    progress = _Progress(len(jobs), sum(job.unit.num_clips for job in jobs))
    if not workers:
        encoder = _make_encoder(setting) if jobs else None
        for job in jobs:
            assert encoder is not None
            encoder.encode(job)
            progress.done(job)
        return
    numbers = multiprocessing.get_context("spawn").SimpleQueue()
    for number in range(workers):
        numbers.put(number)

    def refuse(job: UnitJob) -> None:
        raise _deadly(job, setting.out)

    work = Work(_encode_in_worker, _begin_worker, (setting, workers, numbers))
    for job in done_by_processes(jobs, work, workers, refuse):
        progress.done(job)


def _deadly(job: UnitJob, out: str) -> DataError:
    files = ", ".join(sorted({row.file for row in PageReader(open_storage(out)).rows(job.unit)})[:3])
    return DataError(
        f"{out}: the process that encodes unit {job.unit.name} ({files} and others) dies each time: out of memory, or "
        "a fault of the decoder. Remedy: start again with fewer workers or on a larger machine, or take the clip out "
        "of the list; what is done stays done"
    )


class _Worker:
    """What this worker process is made from, and its encoder once it has encoded something."""

    setting: EncodeSetting | None = None
    encoder: UnitEncoder | None = None


def _begin_worker(setting: EncodeSetting, workers: int, numbers: Any) -> None:
    if torch.cuda.is_available():
        number = numbers.get()
        torch.cuda.set_device(number % torch.cuda.device_count())
        numbers.put(number)  # for one that takes the place of a dead one
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    _Worker.setting = setting


def _encode_in_worker(job: UnitJob) -> None:
    assert _Worker.setting is not None
    try:
        # Not sooner: what is raised where a worker begins is lost.
        _Worker.encoder = _Worker.encoder or _make_encoder(_Worker.setting)
        _Worker.encoder.encode(job)
    except ConfigError as error:
        # It would not survive the way between processes.
        raise DataError(str(error)) from error


def _make_encoder(setting: EncodeSetting) -> UnitEncoder:
    staging = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=setting.staging))
    storage, encoders = open_storage(setting.out), load_encoders(setting.encoders)
    return UnitEncoder(storage, setting.key, encoders, setting.source, staging, setting.shard_bytes, setting.given)


class _Progress:
    """Logs how many units are done, every few seconds."""

    def __init__(self, total: int, num_clips: int) -> None:
        self._total = total
        self._num_clips = num_clips
        self._done = self._clips_done = 0
        self._begin = self._last = time.monotonic()

    def done(self, job: UnitJob) -> None:
        """Count a unit."""
        self._done += 1
        self._clips_done += job.unit.num_clips
        now = time.monotonic()
        if self._done == self._total or now - self._last >= _LOG_EVERY_SECONDS:
            self._last = now
            rate = self._clips_done / (now - self._begin)
            left = format_seconds((self._num_clips - self._clips_done) / rate) if rate else "?"
            _log.info(
                "encode: %d of %d units, %d of %d clips, %.2f clips/s, ETA %s",
                self._done, self._total, self._clips_done, self._num_clips, rate, left,
            )  # fmt: skip
