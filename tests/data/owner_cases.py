"""Processes that ask for one place at once, for tests."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.queues import Queue
from pathlib import Path

from megavideo.data.storage.open import open_storage
from megavideo.data.storage.owners import Claim, Pace, owning
from megavideo.data.storage.protocol import Storage
from megavideo.errors import OutputInUse

QUICK = Pace(beat_seconds=0.1, stale_seconds=0.8)


def place_at(uri: str) -> Path | Storage:
    """A folder as a path, a store as a storage."""
    return open_storage(uri) if "://" in uri else Path(uri)


def ask_at_once(uri: str, plans: Sequence[str | None], hold_seconds: float) -> list[str]:
    """What became of a process for each plan: "held", or the message of its refusal."""
    context = multiprocessing.get_context("fork")
    results: Queue[tuple[int, str]] = context.Queue()
    begin = context.Barrier(len(plans))
    processes = [
        context.Process(target=_ask, args=(uri, number, plan, hold_seconds, begin, results))
        for number, plan in enumerate(plans)
    ]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    return [found[number] for number in range(len(plans))]


def _ask(uri: str, number: int, plan: str | None, hold_seconds: float, begin: object, results: object) -> None:
    begin.wait()  # type: ignore[attr-defined]
    try:
        with owning(place_at(uri), Claim("train", "name= another run", plan), QUICK):
            time.sleep(hold_seconds)
        outcome = "held"
    except OutputInUse as error:
        outcome = str(error)
    results.put((number, outcome))  # type: ignore[attr-defined]
