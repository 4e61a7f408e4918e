"""Jobs done by several processes whose results come in the order of the jobs, or by this process alone.

Workers are spawned, as those of `data/job_pool.py` are and for its reason. Where one dies, this process does what is
left by itself: a job may be done twice, and has the same result.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

from megavideo.data.job_pool import become_worker

_SAMPLES_A_PROCESS = 500_000  # two seconds of work, where a process takes half a second to start
_MOST_PROCESSES = 16  # more than that wait for the one that reads and hashes
_WAITING_A_PROCESS = 2  # jobs given to a process: one that it does and the next, so that it never idles
ALONE = "a process that worked on the table of samples died; this one does what is left by itself"
Job = TypeVar("Job")
Result = TypeVar("Result")


def num_processes(num_samples: int) -> int:
    """Processes that work on so many samples: one for each core that this process may use, as far as it is worth it."""
    affinity = getattr(os, "sched_getaffinity", None)  # only Linux has it
    if affinity is None or multiprocessing.current_process().daemon:  # which may have none of its own
        return 1
    return max(1, min(len(affinity(0)), _MOST_PROCESSES, num_samples // _SAMPLES_A_PROCESS))


def in_order(do: Callable[[Job], Result], jobs: Iterable[Job], processes: int) -> Generator[Result, None, None]:
    """What `do` makes of each job. With more than one process, `do`, jobs and results are pickled.

    Of what `do` raises, that of the first such job is raised here, after the results of those before it. A few jobs are
    taken ahead. Closing the generator ends the processes once they have done the job that they are at.
    """
    if processes < 2:
        yield from map(do, jobs)
        return
    with _Workers(processes) as workers:
        waiting: deque[Callable[[], Result]] = deque()
        for job in jobs:
            waiting.append(workers.begin(do, job))
            if len(waiting) > processes * _WAITING_A_PROCESS:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()


class _Workers:
    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, context, become_worker)
        self._told = False

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def begin(self, do: Callable[[Job], Result], job: Job) -> Callable[[], Result]:
        """Have a worker do the job; what gives its result."""
        try:
            future = self._pool.submit(do, job)
        except BrokenProcessPool:
            return partial(do, job)

        def result() -> Result:
            try:
                return future.result()
            except BrokenProcessPool:
                self._tell()
                return do(job)

        return result

    def _tell(self) -> None:
        if not self._told:
            logging.getLogger(__name__).warning(ALONE)
        self._told = True
