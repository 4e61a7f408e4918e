"""Saving while training goes on: a snapshot in host memory, and a thread that writes it with those of other ranks."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

import torch.distributed as dist

from megavideo.checkpoint.copying import Copies
from megavideo.checkpoint.folder_place import FolderPlace
from megavideo.checkpoint.manifest import Header, step_name
from megavideo.checkpoint.place import Place, SaveId, Storage
from megavideo.checkpoint.progress import SaveProgress
from megavideo.checkpoint.retention import Retention
from megavideo.checkpoint.save_job import SaveJob, SaveResult, SaveTask
from megavideo.checkpoint.snapshot import ChooseCopies, FinalStates, RankState, Snapshot
from megavideo.checkpoint.store_place import StorePlace
from megavideo.checkpoint.waiting import Patience
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.device.choice import copies_for
from megavideo.errors import SaveFailed
from megavideo.parallel.engines.fragments import Fragment

LIMIT_SECONDS = 1800.0  # how long a rank waits for the files of others
LEAVE_SECONDS = 60.0  # the same once the run leaves
MAX_FAILURES = 3  # in a row
_STORE_FILE_BYTES = 512 << 20  # an object that is put in one request


@dataclass(frozen=True)
class SaveGroup:
    """The processes that save together. `session` is the same on all of them, and of this start alone."""

    rank: int
    world_size: int
    session: str

    @classmethod
    def of_run(cls) -> SaveGroup:
        """All ranks of the default process group; a collective call."""
        session = [secrets.token_hex(4)]
        dist.broadcast_object_list(session)
        return cls(dist.get_rank(), dist.get_world_size(), session[0])


@dataclass(frozen=True)
class SaveEvent:
    """How a save ended: `failure` says why there is no checkpoint, `copy_failure` why there is no copy in the store.

    `seconds` is from the snapshot to the end, of which training was blocked for `blocked_seconds`; `size_bytes` is what
    this rank wrote. `place` is the checkpoint's folder, or its address in a store.
    """

    step: int
    place: str
    seconds: float
    blocked_seconds: float
    size_bytes: int
    failure: str | None
    copy_failure: str | None


class Checkpointer:
    """Saves a run; one for each start of it, on every rank.

        group = SaveGroup.of_run()                                       # collective, before the loop
        with Checkpointer(config.checkpoint, folder.checkpoints, group, storage) as checkpointer:
            checkpointer.reserve(owned_fragments(engine))                # so that the first save is as quick as others
            ...
            header = Header(step, layout, yaml, progress, validation_loss, stage_end)
            blocked_seconds = checkpointer.save(header, owned_fragments(engine), overlap=True)
            ...
            checkpointer.settle()                                        # before the update
            ...
            for event in checkpointer.poll():                            # at any step, on any rank
                ...
            checkpointer.wait(required=True)                             # before the run ends

    `storage` is `data.storage.open_storage(f"{config.checkpoint.uri}/{config.name}", RetryPolicy(300.0))`, or None
    where `uri` is null. With `through_folder` it receives a copy of each checkpoint, and is written straight otherwise.

    A save that fails ends nothing at first: it is a warning and an event with its reason, and what was there before
    stays. `save` and `wait` raise SaveFailed for the third in a row, and for one of a stage's end; `wait` also for
    the last one where it is `required`. Results come from rank 0, so that they are the same on every rank. `choose`
    gives the copies of a device on which states are.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        checkpoints: Path,
        group: SaveGroup,
        storage: Storage | None = None,
        limit_seconds: float = LIMIT_SECONDS,
        choose: ChooseCopies = copies_for,
    ) -> None:
        straight = storage is not None and not config.through_folder
        self._progress = SaveProgress()
        moved = self._progress.add
        store = None if storage is None else StorePlace(storage, moved)
        place: Place = store if store is not None and straight else FolderPlace(checkpoints, moved)
        self._address = storage.uri if storage is not None and straight else str(checkpoints)
        copies = None if store is None or straight else Copies(store, checkpoints, config)
        self._patience = Patience(limit_seconds, LEAVE_SECONDS)
        self._job = SaveJob(place, Retention(place, config), copies, group.rank, group.world_size, self._patience)
        self._asynchronous = config.asynchronous
        self._session = group.session
        self._snapshot = Snapshot(_STORE_FILE_BYTES if straight else None, choose)
        self._thread: threading.Thread | None = None
        self._last: tuple[Header, SaveResult] | None = None  # set by the thread, read when it has ended
        self._copied = threading.Event()
        self._copied.set()
        self._blocked_seconds = 0.0
        self._events: deque[SaveEvent] = deque()
        self._num_saves = 0
        self._failures_in_a_row = 0

    @property
    def pieces(self) -> int:
        """Grows while saves of this rank move, however slowly: for whoever waits for them."""
        return self._progress.pieces

    def reserve(self, fragments: Iterable[Fragment]) -> None:
        """Make the host buffers now. The fragments are those that `save` will be given."""
        self._snapshot.reserve(fragments)

    def save(self, header: Header, fragments: Iterable[Fragment], *, overlap: bool = False) -> float:
        """Save this rank's fragments; every rank calls it at the same step. Seconds for which training was blocked.

        Waits for the save before it. With `overlap` the states are copied while training goes on, until `settle`, which
        must be called before anything changes them. Raises SaveFailed where the save before leaves no hope, as the
        class says.
        """
        begin = time.monotonic()
        self.wait()
        states, self._copied = list(fragments), threading.Event()
        final = self._snapshot.final(states)  # here, as the thread knows nothing of what this one gave to the device
        take = partial(self._taken, states, final, self._copied)
        task = SaveTask(SaveId(header.step, self._session, self._num_saves), header, take)
        self._num_saves += 1
        self._blocked_seconds = 0.0
        # a daemon, so that a process that is to end is not held by a thread that waits for ranks which are gone
        self._thread = threading.Thread(target=self._run, args=(task, begin), name="checkpoint", daemon=True)
        self._thread.start()
        if not self._asynchronous:
            self._thread.join()
        elif not overlap:
            self._copied.wait()
        self._blocked_seconds += time.monotonic() - begin
        return self._blocked_seconds

    def settle(self) -> float:
        """Wait until the states are copied that the last `save` was given; seconds that it has blocked so far."""
        begin = time.monotonic()
        self._copied.wait()
        self._blocked_seconds += time.monotonic() - begin
        return self._blocked_seconds

    def poll(self) -> list[SaveEvent]:
        """What ended since the last call, in order; no collective call."""
        events = []
        while self._events:
            events.append(self._events.popleft())
        return events

    def wait(self, *, required: bool = False) -> None:
        """Wait until nothing is being written. Raises SaveFailed as the class says."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._last is None:
            return
        (header, result), self._last = self._last, None
        self._failures_in_a_row = self._failures_in_a_row + 1 if result.failure else 0
        if result.failure is None:
            return
        reason = f"{self._address}/{step_name(header.step)}: not saved; {_UNTOUCHED}. {result.failure}. {_REMEDY}"
        if self._failures_in_a_row >= MAX_FAILURES:
            raise SaveFailed(f"{self._failures_in_a_row} saves in a row failed, at last {reason}")
        if required or header.stage_end:
            raise SaveFailed(reason)

    def close(self) -> None:
        """Let a save that is being written end, but wait for other ranks no longer than a minute. Raises nothing."""
        self._patience.leave()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Checkpointer:
        """The checkpointer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _taken(self, fragments: list[Fragment], final: FinalStates, copied: threading.Event) -> RankState:
        try:
            return self._snapshot.take(fragments, final)
        finally:
            copied.set()

    def _run(self, task: SaveTask, begin: float) -> None:
        """The thread: the save, its event, and on rank 0 a line of the log."""
        copied = self._copied
        result = self._job.run(task)
        copied.set()  # also where the job failed before it came to copying
        seconds = time.monotonic() - begin
        place = f"{self._address}/{task.save.name}"
        if self._job.rank == 0:
            _log(place, result, seconds)
        self._last = (task.header, result)
        blocked = min(self._blocked_seconds, seconds) if self._asynchronous else seconds
        self._events.append(
            SaveEvent(task.save.step, place, seconds, blocked, result.size_bytes, result.failure, result.copy_failure)
        )


_UNTOUCHED = "the checkpoints before it are untouched"
_REMEDY = "Remedy: make room or correct the rights; the same command then goes on from the last checkpoint"


def _log(place: str, result: SaveResult, seconds: float) -> None:
    log = logging.getLogger(__name__)
    if result.failure is not None:
        log.warning("%s: NOT SAVED, and the run goes on; %s. %s", place, _UNTOUCHED, result.failure)
        return
    log.info("saved %s in %.1f s", place, seconds)
    if result.copy_failure is not None:
        log.warning("%s: not copied: %s. It stays where it is, and the run goes on", place, result.copy_failure)
