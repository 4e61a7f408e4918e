"""One owner of an output: whoever else begins to write there is told who is at work, and ends with status 75.

Nothing but whole files, and listings that show what was written before, is asked of the place; no locks, which shared
file systems and stores lack. A process writes its sign, then looks: of two that ask at once, one at least sees the
other. The later one, by the number in its name, withdraws; the earlier waits until it knows what became of the later.

A process whose sign is there is dead where its machine says so, and otherwise where the sign has not changed while it
was watched for `stale_seconds`: no clock of another machine is trusted.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from megavideo.data.storage.local import LocalStorage
from megavideo.data.storage.protocol import Storage
from megavideo.data.storage.signs import Signs, signs_at
from megavideo.errors import DataError, OutputInUse
from megavideo.observe.owner import Owner, is_alive, parse_owner, this_process

_log = logging.getLogger(__name__)
_FIRST_PAUSE, _MOST_PAUSE = 0.02, 1.0
_MOST_CLEARED = 64  # signs of tasks that shared the work and were killed; thousands are not read by each of thousands
# waits are spread so that those who ask do not come back all at once; never the global generator
_JITTER = random.Random()


@dataclass(frozen=True)
class Pace:
    """How often an owner gives a sign of life, and after how many seconds without one it is given up for dead."""

    beat_seconds: float = 10.0
    stale_seconds: float = 60.0


_FOLDER_PACE, _STORE_PACE = Pace(), Pace(20.0, 120.0)


@dataclass(frozen=True)
class Claim:
    """What is asked for: the command, what it works on, and how the user would give it another place.

    Processes that give the same `plan` share the place; None is shared with nobody. With `is_file` the place is one
    file, and not a folder or prefix.
    """

    use: str
    elsewhere: str
    plan: str | None = None
    is_file: bool = False


class _State(Enum):
    LIVES = "lives"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class _Other:
    """A sign of another plan; `owner` is None where it cannot be read."""

    name: str
    owner: Owner | None
    state: _State

    @property
    def held(self) -> bool:
        return self.owner is not None and self.owner.held


class _Watch:
    """The signs of others, and whether they moved since they were first seen."""

    def __init__(self, signs: Signs, owner: Owner, pace: Pace) -> None:
        self._signs = signs
        self._owner = owner
        self._stale_seconds = pace.stale_seconds
        self._seen: dict[str, tuple[tuple[bytes, int], float, bool]] = {}

    def look(self) -> tuple[list[str], list[_Other]]:
        """All names, and those signs that exclude this process's."""
        names, others = self._signs.names(), []
        for name in names:
            if _plan_of(name) == self._owner.plan or (sign := self._signs.read(name)) is None:
                continue
            owner = parse_owner(sign[0])
            others.append(_Other(name, owner, self._judge(name, owner, sign)))
        return names, others

    def _judge(self, name: str, owner: Owner | None, sign: tuple[bytes, int]) -> _State:
        now = time.monotonic()
        before, since, moved = self._seen.get(name, (sign, now, False))
        if sign != before:
            since, moved = now, True
        self._seen[name] = (sign, since, moved)
        alive = None if owner is None else is_alive(owner)
        if alive is not None:
            return _State.LIVES if alive else _State.DEAD
        if now - since > self._stale_seconds:
            return _State.DEAD
        return _State.LIVES if moved else _State.UNKNOWN


class Ownership:
    """An output that is this process's own, or shared with those of its plan; `close` gives it up."""

    def __init__(self, signs: Signs, claim: Claim, pace: Pace) -> None:
        token = secrets.token_hex(8)
        self._signs, self._claim, self._pace = signs, claim, pace
        plan = token if claim.plan is None else hashlib.sha256(claim.plan.encode()).hexdigest()[: len(token)]
        self._owner = this_process(claim.use, plan, token, os.environ)
        self._watch = _Watch(signs, self._owner, pace)
        self._name = ""
        self._last_beat = time.monotonic()
        self._lost: OutputInUse | None = None
        self._busy = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Become an owner. Raises OutputInUse where another plan has one, DataError where the place refuses."""
        pause = _FIRST_PAUSE
        while not self._try():
            time.sleep(pause * (0.5 + _JITTER.random()))
            pause = min(_MOST_PAUSE, pause * 1.5)
        self._thread = threading.Thread(target=self._beats, name="megavideo-owner", daemon=True)
        self._thread.start()

    def _try(self) -> bool:
        names, others = self._watch.look()
        self._refuse_if_held(others)
        if any(other.state is not _State.DEAD for other in others):
            return False  # one that asks, or that may be dead
        ticket = 1 + max((_ticket(name) for name in names), default=0)
        self._name = f"{ticket:08d}-{self._owner.plan}-{self._owner.token}.json"
        self._write(held=False)
        if self._is_alone():
            self._write(held=True)
            names, others = self._watch.look()
            if all(other.state is _State.DEAD or not other.held for other in others):
                self._remove_dead(names, others)
                return True  # else this process stood still for so long that it was given up
        self._withdraw()
        return False

    def _remove_dead(self, names: list[str], others: list[_Other]) -> None:
        for name in [name for name in names if _plan_of(name) == self._owner.plan][:_MOST_CLEARED]:
            sign = self._signs.read(name)
            owner = None if sign is None else parse_owner(sign[0])
            if owner is not None and is_alive(owner) is False:
                self._signs.remove(name)
        for other in others:
            if other.state is _State.DEAD:
                _log.info("%s: taken over from %s, which has ended", self._signs.place, other.owner or other.name)
                self._signs.remove(other.name)

    def _is_alone(self) -> bool:
        """Wait until it is known what becomes of those that ask at the same time; False where one was first."""
        pause = _FIRST_PAUSE
        while True:
            names, others = self._watch.look()
            rivals = [other for other in others if other.state is not _State.DEAD]
            if self._name not in names or any(other.held or other.name < self._name for other in rivals):
                return False
            if not rivals:
                return time.monotonic() - self._last_beat < self._pace.stale_seconds / 2
            time.sleep(pause)
            pause = min(_MOST_PAUSE, pause * 1.5)
            self._write(held=False)

    def _refuse_if_held(self, others: list[_Other]) -> None:
        for other in others:
            if other.held and other.state is _State.LIVES and other.owner is not None:
                raise in_use(self._signs.place, other.owner, self._claim.elsewhere)

    def _write(self, held: bool) -> None:
        owner = replace(self._owner, held=held, beats=self._owner.beats + 1)
        self._signs.write(self._name, owner.to_bytes())
        self._owner, self._last_beat = owner, time.monotonic()

    def _withdraw(self) -> None:
        if self._name:
            self._signs.remove(self._name)
        self._name = ""

    def check(self) -> None:
        """Raise OutputInUse where the output has been taken over, as from a process that stood still for too long.

        Asks the place only where the last sign of life is old.
        """
        if self._lost is None and time.monotonic() - self._last_beat > self._pace.stale_seconds / 2:
            self._beat()
        if self._lost is not None:
            raise self._lost

    def _beats(self) -> None:
        while not self._ended.wait(self._pace.beat_seconds):
            self._beat()

    def _beat(self) -> None:
        with self._busy:
            if self._lost is not None or self._ended.is_set():
                return
            owner = replace(self._owner, beats=self._owner.beats + 1)
            try:
                if not self._signs.beat(self._name, owner.to_bytes()) or self._is_taken():
                    self._lost = self._taken_over()
                    return
            except DataError as error:
                _log.debug("no sign of life: %s", error)  # others cannot write there either, or soon see one
                return
            self._owner, self._last_beat = owner, time.monotonic()

    def _is_taken(self) -> bool:
        """True where another plan holds the place, and still does at a second look: one that withdraws is soon gone."""
        if not self._holders():
            return False
        time.sleep(_MOST_PAUSE)
        return bool(self._holders())

    def _holders(self) -> list[Owner]:
        _, others = self._watch.look()
        return [other.owner for other in others if other.owner is not None and other.held
                and other.state is not _State.DEAD]  # fmt: skip

    def _taken_over(self) -> OutputInUse:
        by = ", ".join(map(str, self._holders())) or "another process"
        return OutputInUse(
            f"{self._signs.place}: taken over by {by}, as this process gave no sign of life for "
            f"{self._pace.stale_seconds:.0f} s. Remedy: wait for that one; the same command then goes on"
        )

    def close(self) -> None:
        """Give the place up."""
        self._ended.set()
        with self._busy:
            try:
                if self._lost is None:
                    self._withdraw()
                self._signs.leave()
            except DataError as error:
                _log.debug("the sign of this owner stays: %s", error)
        if self._thread is not None:
            self._thread.join()


@contextmanager
def owning(place: Path | Storage, claim: Claim, pace: Pace | None = None) -> Iterator[Ownership]:
    """Own the output at `place` for the duration of the block.

    Raises OutputInUse, which names the owner, where another plan is at work there. A sign of a process that may be dead
    is watched first, for `pace.stale_seconds` at most.
    """
    is_folder = isinstance(place, Path | LocalStorage)
    ownership = Ownership(signs_at(place, claim.is_file), claim, pace or (_FOLDER_PACE if is_folder else _STORE_PACE))
    try:
        ownership.take()
        yield ownership
    finally:
        ownership.close()


def in_use(place: str, owner: Owner, elsewhere: str) -> OutputInUse:
    """The error of a second start."""
    end = f"`scancel {owner.job}`" if owner.job else f"`kill {owner.pid}` on {owner.host}"
    return OutputInUse(
        f"{place}: in use by {owner}; it gave a sign of life just now. Remedy: wait until it has ended, and the same "
        f"command goes on; or end it with {end}; or give {elsewhere}"
    )


def _plan_of(name: str) -> str:
    return [*name.split("-"), "", ""][1]


def _ticket(name: str) -> int:
    number = name.partition("-")[0]
    return int(number) if number.isdecimal() and len(number) <= 8 else 0
