"""Real processes for a layout: forked from one server that has made the imports, joined over gloo."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.context
import os
import pkgutil
import signal
import tempfile
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from multiprocessing import forkserver
from pathlib import Path

from megavideo.errors import MegavideoError
from megavideo.parallel.counting import counting_process_group
from megavideo.parallel.processes.distributed import free_port, leave, process_group
from megavideo.parallel.processes.forked import become_rank
from megavideo.parallel.stand_in.late_group import late_process_group
from megavideo.parity.record import Record
from megavideo.parity.spec import ParitySpec

_PRELOAD = "megavideo.parity.preload"
_POLL_SECONDS = 0.02

Processes = list[multiprocessing.context.ForkServerProcess]


class RanksFailed(RuntimeError):
    """Processes of a layout that did not come to their end; says which was the first, and of what."""


class Pool:
    """Starts the processes of one layout after another. `limit_seconds` bounds each layout."""

    def __init__(self, limit_seconds: float = 300.0) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([_PRELOAD])
        self._limit = limit_seconds
        _start_server()

    def run(
        self, spec: ParitySpec, layout: str, world_size: int, inside: str = "", *, count_bytes: bool = False
    ) -> list[Record]:
        """The accounts of a layout's processes. Raises RanksFailed where one fails, or they take too long.

        `inside` is the dotted name of a context manager in which each process runs, by which tests disturb it.
        With `count_bytes` its groups count what it sends in its steps (`Record.sent_bytes`), on a spec that is not
        like a GPU: there its groups are late ones.
        """
        assert not (count_bytes and spec.device_like == "gpu"), "a group counts, or is late"
        with tempfile.TemporaryDirectory(prefix="megavideo-parity-") as folder:
            place, port = Path(folder), free_port()
            processes = [
                self._context.Process(
                    target=_main, args=(spec, layout, rank, world_size, port, place, inside, count_bytes), daemon=True
                )
                for rank in range(world_size)
            ]
            try:
                for process in processes:
                    process.start()
                self._wait(processes, place)
            finally:
                _end(processes)
            return [Record.read(_record(place, rank)) for rank in range(world_size)]

    def _wait(self, processes: Processes, place: Path) -> None:
        end = time.monotonic() + self._limit
        while any(process.exitcode is None for process in processes):
            if any(process.exitcode for process in processes):
                break
            if time.monotonic() > end:
                raise RanksFailed(
                    f"{len(processes)} processes on {os.cpu_count()} cores were not done in {self._limit:.0f} s: take "
                    "fewer steps or packs, and where that does not help, they wait for each other for good"
                )
            time.sleep(_POLL_SECONDS)
        failed = {rank: process.exitcode for rank, process in enumerate(processes) if process.exitcode}
        if failed:
            raise RanksFailed(_first_fault(failed, place))


def _start_server() -> None:
    """Start the server with interrupts ignored, as then its forks do too.

    Ctrl-C reaches every process of a terminal, and this one ends the others: each would only print a traceback.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _end(processes: Processes) -> None:
    """End those that were started."""
    for process in processes:
        if process.pid is not None:
            process.kill()
            process.join()


def _first_fault(failed: Mapping[int, int], place: Path) -> str:
    """What happened, from the exit status of each process that failed.

    One that is killed writes nothing, and the others then fail of the lost connection: what they tell comes after it.
    """
    told = {rank: path for rank in failed if (path := _error(place, rank)).exists()}
    silent = [rank for rank in failed if rank not in told]
    if silent:
        status = failed[silent[0]]
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return f"process {silent[0]} {how}"
    first = min(told, key=lambda rank: told[rank].stat().st_mtime_ns)
    return f"process {first} failed: {told[first].read_text().strip()}"


def _record(place: Path, rank: int) -> Path:
    return place / f"rank_{rank}.safetensors"


def _error(place: Path, rank: int) -> Path:
    return place / f"error_{rank}.txt"


def _main(
    spec: ParitySpec, layout: str, rank: int, world_size: int, port: int, place: Path, inside: str, count_bytes: bool
) -> None:
    """A forked process."""
    logging.disable(logging.INFO)
    become_rank(rank, world_size, port)
    try:
        _run(spec, layout, inside, count_bytes).write(_record(place, rank))
    except BaseException as error:  # noqa: BLE001 - told to the process that started this one
        where = "" if isinstance(error, MegavideoError) else f"\n{traceback.format_exc()}"  # of a defect only
        _error(place, rank).write_text(f"{type(error).__name__}: {error}{where}")
        leave(1)
    leave(0)


def _run(spec: ParitySpec, layout: str, inside: str, count_bytes: bool) -> Record:
    from megavideo.parity.process import run_process

    with ExitStack() as stack:
        counter = None
        if count_bytes:
            launch, counter = stack.enter_context(counting_process_group())
        elif spec.device_like == "gpu":
            launch = stack.enter_context(late_process_group())
        else:
            launch = stack.enter_context(process_group())
        if inside:
            stack.enter_context(pkgutil.resolve_name(inside)())
        return run_process(spec, layout, launch, counter)
