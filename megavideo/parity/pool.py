"""Real processes for a layout: forked from one server that has made the imports, joined over gloo."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.context
import pkgutil
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from megavideo.errors import TopologyError
from megavideo.parallel.counting import counting_process_group
from megavideo.parallel.processes.distributed import free_port, leave, process_group
from megavideo.parallel.processes.forked import become_rank
from megavideo.parity.record import Record
from megavideo.parity.spec import ParitySpec

_PRELOAD = "megavideo.parity.preload"
_POLL_SECONDS = 0.02


class Pool:
    """Starts the processes of one layout after another. `limit_seconds` bounds each."""

    def __init__(self, limit_seconds: float = 300.0) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([_PRELOAD])
        self._limit = limit_seconds

    def run(
        self, spec: ParitySpec, layout: str, world_size: int, inside: str = "", *, count_bytes: bool = False
    ) -> list[Record]:
        """The accounts of a layout's processes. Raises TopologyError with the first process's fault, or on time-out.

        `inside` is the dotted name of a context manager in which each process runs, by which tests disturb it.
        With `count_bytes` its groups count what it sends in its steps (`Record.sent_bytes`).
        """
        with tempfile.TemporaryDirectory(prefix="megavideo-parity-") as folder:
            place, port = Path(folder), free_port()
            processes = [
                self._context.Process(
                    target=_main, args=(spec, layout, rank, world_size, port, place, inside, count_bytes), daemon=True
                )
                for rank in range(world_size)
            ]
            for process in processes:
                process.start()
            try:
                self._wait(processes, layout, place)
            finally:
                for process in processes:
                    process.kill()
                    process.join()
            return [Record.read(_record(place, rank)) for rank in range(world_size)]

    def _wait(self, processes: Sequence[multiprocessing.context.ForkServerProcess], layout: str, place: Path) -> None:
        end = time.monotonic() + self._limit
        while any(process.exitcode is None for process in processes):
            if any(process.exitcode for process in processes):
                break
            if time.monotonic() > end:
                raise TopologyError(f"layout {layout}: its processes were not done in {self._limit:.0f} s")
            time.sleep(_POLL_SECONDS)
        for rank, process in enumerate(processes):
            if process.exitcode:
                error = place / f"error_{rank}.txt"
                text = error.read_text() if error.exists() else f"exit status {process.exitcode}"
                raise TopologyError(f"layout {layout}: process {rank} failed: {text}")


def _record(place: Path, rank: int) -> Path:
    return place / f"rank_{rank}.safetensors"


def _main(
    spec: ParitySpec, layout: str, rank: int, world_size: int, port: int, place: Path, inside: str, count_bytes: bool
) -> None:
    """A forked process."""
    logging.disable(logging.INFO)
    become_rank(rank, world_size, port)
    try:
        _run(spec, layout, inside, count_bytes).write(_record(place, rank))
    except BaseException:  # noqa: BLE001 - told to the process that started this one
        (place / f"error_{rank}.txt").write_text(traceback.format_exc())
        leave(1)
    leave(0)


def _run(spec: ParitySpec, layout: str, inside: str, count_bytes: bool) -> Record:
    from megavideo.parity.process import run_process

    with ExitStack() as stack:
        counter = None
        if count_bytes:
            launch, counter = stack.enter_context(counting_process_group())
        else:
            launch = stack.enter_context(process_group())
        if inside:
            stack.enter_context(pkgutil.resolve_name(inside)())
        return run_process(spec, layout, launch, counter)
