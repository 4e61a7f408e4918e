"""A function run on several ranks, forked from a server that has made the imports, joined over gloo.

For tests of what is below a whole training run, which `train_cases` is for.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from megavideo.border.json_text import read_json
from megavideo.parallel.processes.distributed import free_port, leave, process_group
from megavideo.parallel.processes.forked import become_rank

# The first of them also keeps the server, and so its forks, to one thread of a CPU. A server lives as long as the
# tests' process and imports once: whoever asks first, all that any of them needs.
PRELOAD = ["megavideo.parity.preload", "megavideo.testing.train_cases"]
_TIMEOUT_SECONDS = 400.0
_POLL_SECONDS = 0.02

# from this rank (`Launch`) and the arguments to what JSON can hold
RankFunction = Callable[..., Any]


# what makes the process group of a rank, for a `with`, and gives its `Launch`
GroupMaker = Callable[[], AbstractContextManager[Any]]


def run_ranks(
    function: RankFunction,
    arguments: tuple[Any, ...],
    folder: Path,
    *,
    processes: int,
    group: GroupMaker = process_group,
) -> list[Any]:
    """What `function(launch, *arguments)` returned on each rank, through JSON.

    `function` and `group` stand at the top of a module. Raises RuntimeError with what the ranks wrote where one fails
    or the end does not come.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    port = free_port()
    started = [  # no daemons, which could have no workers of their own
        context.Process(target=_main, args=(function, arguments, rank, processes, port, folder, group))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    end = time.monotonic() + _TIMEOUT_SECONDS
    try:
        while any(process.exitcode is None for process in started):
            if any(process.exitcode for process in started) or time.monotonic() > end:
                break
            time.sleep(_POLL_SECONDS)
        statuses = [process.exitcode for process in started]
    finally:
        for process in started:
            process.kill()
            process.join()
    if any(status != 0 for status in statuses):
        told = "\n".join(path.read_text() for path in sorted(folder.glob("err_*.txt")))
        raise RuntimeError(f"the ranks in {folder} ended with {statuses} (None: still at work)\n{told}")
    return [read_json(folder / f"rank_{rank}.json") for rank in range(processes)]


def _main(
    function: RankFunction,
    arguments: tuple[Any, ...],
    rank: int,
    world_size: int,
    port: int,
    folder: Path,
    group: GroupMaker,
) -> None:
    """A forked process."""
    become_rank(rank, world_size, port)
    errors = (folder / f"err_{rank}.txt").open("w")
    os.dup2(errors.fileno(), sys.stderr.fileno())
    logging.basicConfig(level=logging.WARNING)
    try:
        with group() as launch:
            result = function(launch, *arguments)
        (folder / f"rank_{rank}.json").write_text(json.dumps(result))
    except BaseException:  # noqa: BLE001 - told to the process that started this one
        traceback.print_exc()
        leave(1)
    leave(0)
