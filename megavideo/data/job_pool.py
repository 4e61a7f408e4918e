"""Jobs done by several processes; one that dies takes nothing with it but the jobs that it was at.

Where a process dies, the jobs that were under way are done again, one at a time: the one that ends its process twice is
told, and the others go on.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
_WAITING_A_WORKER = 2  # jobs given to a worker: one that it does and the next, so that it never idles


@dataclass(frozen=True)
class Work(Generic[Job]):
    """What workers do: `do` with each job, after `begin(*arguments)` once in each process.

    Both are functions of a module, as workers are spawned. What `do` raises is raised where jobs are waited for.
    """

    do: Callable[[Job], None]
    begin: Callable[..., None]
    arguments: tuple[Any, ...] = ()


def done_by_processes(
    jobs: Sequence[Job], work: Work[Job], num_workers: int, on_deadly: Callable[[Job], None]
) -> Generator[Job, None, None]:
    """The jobs as they are done, in any order. `on_deadly` is told of one that ends its process each time.

    A job may be done twice, where its process died before it could tell that it had ended. Closing the generator, or an
    interrupt by keyboard, ends the workers at once.
    """
    rest = dict(enumerate(jobs))
    suspects: dict[int, Job] = {}
    while rest:
        under_way: list[int] = []
        try:
            for number in _pooled(rest, work, num_workers, under_way):
                yield rest.pop(number)
        except BrokenProcessPool:
            logging.getLogger(__name__).warning(
                "a worker died; %d jobs that were under way are done again", len(under_way)
            )
            suspects |= {number: rest.pop(number) for number in under_way}
    for job in suspects.values():
        if not _done_alone(job, work):
            on_deadly(job)
        yield job


def _done_alone(job: Job, work: Work[Job]) -> bool:
    for _ in range(2):
        try:
            with closing(_pooled({0: job}, work, 1, [])) as done:
                next(done)
            return True
        except BrokenProcessPool:
            continue
    return False


def _pooled(
    jobs: dict[int, Job], work: Work[Job], num_workers: int, under_way: list[int]
) -> Generator[int, None, None]:
    """Numbers of jobs as they are done. `under_way` always holds those that were given out and are not done yet."""
    waiting: dict[Future[None], int] = {}
    todo = iter(list(jobs.items()))
    # Spawned: a fork of a process that has used threads, a store or a GPU can hang.
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(num_workers, context, _begin_worker, (work.begin, work.arguments))
    try:
        while True:
            while len(waiting) < num_workers * _WAITING_A_WORKER and (item := next(todo, None)) is not None:
                number, job = item
                under_way.append(number)
                waiting[pool.submit(work.do, job)] = number
            if not waiting:
                return
            done = wait(waiting, return_when=FIRST_COMPLETED).done
            for future in sorted(done, key=lambda future: future.exception() is not None):
                future.result()
                under_way.remove(waiting[future])
                yield waiting.pop(future)
    except (KeyboardInterrupt, GeneratorExit):
        for process in set(multiprocessing.active_children()) - before:
            process.kill()  # a job may take hours, and is whole or absent
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker(begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    become_worker()
    begin(*arguments)


def become_worker() -> None:
    """Let this process end when the one that started it was killed, and be quiet about an interrupt by keyboard."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
