"""Who is at work in a folder: the signs that processes leave there, and whether one of them still lives.

A sign is a small JSON file in the hidden folder `.owner`. Its name begins with a number that tells which came first,
and its time of change is the last sign of life of its process.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from megavideo.border.fields import Count
from megavideo.border.files import KB, open_file, read_all
from megavideo.border.json_text import parse_json
from megavideo.border.refused import Refused
from megavideo.observe.progress import format_seconds

OWNER_FOLDER = ".owner"
_MOST_BYTES = 64 * KB
_LONGEST_TEXT = 256
_ENDED_STATES = ("Z", "X", "x")


@dataclass(frozen=True)
class Owner:
    """A process that works in a place, or asks to.

    `use` is its command, and `plan` what it works on: those of one plan share the place. `machine` is the same for all
    processes that see each other's pids (empty where that is not known), and `started` tells a process from a later one
    with its pid. `since` is an ISO time, `job` the Slurm job (empty without). With `held` the place is its own, and not
    only asked for. `beats` counts its signs of life.
    """

    use: str
    plan: str
    token: str
    host: str
    machine: str
    pid: Count
    started: str
    since: str
    job: str = ""
    held: bool = False
    beats: Count = 0

    def __post_init__(self) -> None:
        """Raise Refused for texts that no message can show."""
        texts = (self.use, self.plan, self.token, self.host, self.machine, self.started, self.since, self.job)
        if not all(len(text) <= _LONGEST_TEXT and text.isprintable() for text in texts):
            raise Refused("a text that is long, or cannot be printed")

    def __str__(self) -> str:
        """One line of a message."""
        job = f", Slurm job {self.job}" if self.job else ""
        return f"`megavideo {self.use}`, process {self.pid} on {self.host}{job}, since {self.since}"

    def to_bytes(self) -> bytes:
        """The content of its file."""
        return json.dumps(asdict(self)).encode() + b"\n"


def this_process(use: str, plan: str, token: str, environment: Mapping[str, str]) -> Owner:
    """The sign of this process."""
    pid = os.getpid()
    since = datetime.now(UTC).isoformat(timespec="seconds")
    job = environment.get("SLURM_JOB_ID", "")
    return Owner(use, plan, token, socket.gethostname(), this_machine(), pid, _started(pid) or "", since, job)


def parse_owner(data: bytes) -> Owner | None:
    """The owner that a file tells of; None where it is not whole, as while it is being written."""
    try:
        return parse_json(data, Owner)
    except Refused:
        return None


def this_machine() -> str:
    """The running kernel and the table of processes that this one sees; empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def is_alive(owner: Owner) -> bool | None:
    """Whether the process of `owner` runs; None where it is another machine's, or the system does not tell."""
    if not owner.machine or owner.machine != this_machine() or not owner.started:
        return None
    started = _started(owner.pid)
    if started is not None:
        return started == owner.started
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return None  # another user's, which /proc may hide
    return None


def _started(pid: int) -> str | None:
    """When a process began, in ticks of this boot; empty for one that has ended, None where there is no telling."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    after_name = stat[stat.rfind(b")") + 1 :].decode("ascii", "replace").split()
    return "" if after_name[0] in _ENDED_STATES else after_name[19]


def read_sign(path: Path) -> tuple[bytes, int] | None:
    """Content and time of change (ns) of a sign, as they are now on a shared file system; None where it is gone.

    Raises OSError where the system refuses.
    """
    try:
        with open_file(path) as file:  # opening asks the server, where a look at the name may be answered from a cache
            changed = os.fstat(file.fileno()).st_mtime_ns
            return read_all(file, _MOST_BYTES), changed
    except FileNotFoundError:
        return None
    except Refused:
        return b"", 0


@dataclass(frozen=True)
class OwnerStatus:
    """Who holds a folder, and its last sign of life, seconds ago; `alive` is None where that cannot be told."""

    use: str
    host: str
    pid: int
    job: str
    since: str
    beat_seconds: float
    alive: bool | None

    def __str__(self) -> str:
        """One line of a view."""
        job = f", Slurm job {self.job}" if self.job else ""
        state = ", which has ended without giving it up" if self.alive is False else ""
        beat = format_seconds(self.beat_seconds)
        return f"{self.use}, process {self.pid} on {self.host}{job}{state}; last sign of life {beat} ago"


def owners_of(folder: Path, now: float | None = None) -> list[OwnerStatus]:
    """Those that hold `folder`, first the one that came last; none where nobody does, or it may not be looked into."""
    now = time.time() if now is None else now
    found = []
    try:
        for path in sorted((folder / OWNER_FOLDER).glob("*.json"), reverse=True):
            sign = read_sign(path)
            owner = None if sign is None else parse_owner(sign[0])
            if sign is not None and owner is not None and owner.held:
                age = max(now - sign[1] / 1e9, 0.0)
                found.append(OwnerStatus(
                    owner.use, owner.host, owner.pid, owner.job, owner.since, age, is_alive(owner),
                ))  # fmt: skip
    except OSError:
        return found
    return found
