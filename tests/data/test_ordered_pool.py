"""Jobs by processes with results in order: how far they run ahead, what a death costs, how many there are.

Workers import this file, which therefore imports little.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from functools import partial

import pytest

from megavideo.data.table import ordered_pool
from megavideo.data.table.ordered_pool import in_order, num_processes


def square_late(number: int) -> int:
    """The square; of an even number later."""
    time.sleep(0.02 * (number % 2 == 0))
    return number * number


def square_or_die(parent: int, number: int) -> int:
    """The square, unless this is a worker that is to do a multiple of 7."""
    if number % 7 == 3 and os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def test_results_come_in_order_and_few_jobs_are_taken_ahead() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(30):
            taken.append(number)
            yield number

    for number, result in enumerate(in_order(square_late, jobs(), 2)):
        assert result == number * number
        assert len(taken) <= number + 6


def test_a_worker_that_dies_costs_time_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = list(in_order(partial(square_or_die, os.getpid()), range(40), 2))
    assert found == [number * number for number in range(40)]
    assert [record.message for record in caplog.records].count(ordered_pool.ALONE) == 1


def test_workers_end_where_results_are_wanted_no_more() -> None:
    before = set(multiprocessing.active_children())
    results = in_order(square_late, range(1000), 2)
    assert next(results) == 0
    workers = set(multiprocessing.active_children()) - before
    results.close()
    assert workers and not any(worker.is_alive() for worker in workers)


def test_processes_are_as_many_as_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert [num_processes(count) for count in (0, 999_999, 1_000_000, 3_000_000, 10**9)] == [1, 1, 2, 6, 12]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(192)))
    assert num_processes(10**9) == 16
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert num_processes(10**9) == 1
