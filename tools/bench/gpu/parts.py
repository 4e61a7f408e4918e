"""One part of the bench in a process of its own: forked, watched, ended when it is over its time.

A kernel's fault can spoil a device for the whole process. A part whose process is lost that way begins again without
what was running, and keeps its rows.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection

from rows import Row
from session import Session
from timing import DeviceLostError, describe

from megavideo.parallel.processes.forked import end_with_parent

_STARTS = 4
_GRACE_SECONDS = 15.0  # after the end of a part's time, for what cannot be broken off
_LEAST_SECONDS = 2.0  # left, for a part to begin again


@dataclass(frozen=True)
class Part:
    """A part: its share of the time beside the others', and what measures it, as the name of a module.

    The module is imported in the part's own process, so that what it needs can be missing.
    """

    name: str
    title: str
    share: float
    module: str


@dataclass
class _Seen:
    """What a part's process has told."""

    trying: str = ""
    lost: str = ""
    finished: bool = False
    done: set[str] = field(default_factory=set)


def run_part(part: Part, session: Callable[..., Session], end: float, add: Callable[[Row], None]) -> bool:
    """Run a part until `end` (`time.monotonic`); whether it came to its own end.

    `session` makes what the part is given, from the names to leave out and the cases that have rows.
    """
    excluded: set[str] = set()
    done: set[str] = set()
    for _ in range(_STARTS):
        seen = _Seen(done=done)
        overrun = _watch(part, session, (frozenset(excluded), frozenset(done)), end, seen, add)
        if seen.finished:
            return True
        if overrun:
            text = f"stopped {_GRACE_SECONDS:.0f} s after its time, while {seen.trying or 'it began'}"
            add(Row(part.name, "the part", seen.trying or part.name, "failed", note=text))
            return False
        add(Row(part.name, "the part", seen.trying or part.name, "failed", note=seen.lost))
        if not seen.trying or seen.trying in excluded or end - time.monotonic() < _LEAST_SECONDS:
            return False
        excluded.add(seen.trying)
    return False


def _watch(
    part: Part,
    session: Callable[..., Session],
    before: tuple[frozenset[str], frozenset[str]],
    end: float,
    seen: _Seen,
    add: Callable[[Row], None],
) -> bool:
    """Take over what the part's process tells until it ends; whether it had to be stopped."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_live, args=(part, session, before, theirs), name=part.name)
    process.start()
    theirs.close()
    overrun = ended = False
    try:
        while not (overrun or ended):
            overrun = not ours.poll(max(0.0, end + _GRACE_SECONDS - time.monotonic()))
            if not overrun:
                ended = not _took(ours, seen, add)
        if ended:
            process.join(_GRACE_SECONDS)
    finally:
        process.kill()
        process.join()
    if not seen.finished and not seen.lost:
        code = process.exitcode or 0
        seen.lost = f"its process ended by signal {-code}" if code < 0 else f"its process ended with status {code}"
    return overrun


def _took(told: Connection, seen: _Seen, add: Callable[[Row], None]) -> bool:
    """Take over one thing that was told; False where nothing more comes."""
    try:
        kind, value = told.recv()
    except (EOFError, ConnectionResetError):
        return False
    if kind == "row":
        seen.done.add(value.case)
        add(value)
    elif kind == "trying":
        seen.trying = value
    elif kind == "lost":
        seen.trying, seen.lost = value
    else:
        seen.finished = True
    return True


def _live(
    part: Part,
    session: Callable[..., Session],
    before: tuple[frozenset[str], frozenset[str]],
    told: Connection,
) -> None:
    """The part's process."""
    end_with_parent()
    try:
        given = session(part.name, *before, lambda name: told.send(("trying", name)))
        for row in _measure(part, given):
            told.send(("row", row))
    except DeviceLostError as error:
        told.send(("lost", (error.name, f"the device was lost: {error}")))
        return
    except Exception as error:  # noqa: BLE001  a part that fails is a row, and the others go on
        told.send(("row", Row(part.name, "the part", part.name, "failed", note=describe(error))))
    told.send(("finished", None))


def _measure(part: Part, session: Session) -> Iterator[Row]:
    rows: Iterator[Row] = import_module(part.module).measure(session)
    return rows
