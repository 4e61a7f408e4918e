"""What a check found, and checks that end: one that hangs, as on a dead file system, has failed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from megavideo.errors import MegavideoError

# the columns of the table, in the order in which they are made
CHECKS = ("store", "output", "disk", "versions", "gpu", "matmul", "clock", "links")

T = TypeVar("T")


class NoAnswer(RuntimeError):
    """A check that does not end in time, or a peer that does not take part in one."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one of CHECKS on one rank or node; `text` is short where it is good, and says all where not.

    `measured` is what is still to be compared between ranks: seconds, a hash, or versions by name.
    """

    check: str
    good: bool
    text: str
    measured: float | str | dict[str, str] | None = None


def answer_within(seconds: float, ask: Callable[[], T]) -> T:
    """What `ask` returns or raises; NoAnswer where it does neither in time.

    It is asked in a thread of its own, since what hangs may hang the host, as NCCL does where it connects. That thread
    is then left behind, and ends with the process.
    """
    answers: list[T] = []
    faults: list[BaseException] = []

    def work() -> None:
        try:
            answers.append(ask())
        except BaseException as error:  # noqa: BLE001 - raised below, by the thread that asked
            faults.append(error)

    thread = threading.Thread(target=work, name="megavideo-preflight", daemon=True)
    thread.start()
    thread.join(seconds)
    if faults:
        raise faults[0]
    if not answers:
        raise NoAnswer(f"no answer in {seconds:g} s")
    return answers[0]


def limited(name: str, seconds: float, check: Callable[[], Finding]) -> Finding:
    """What `check` finds; a bad finding where it raises what a machine can cause, or has no answer in time."""
    try:
        return answer_within(seconds, check)
    except (MegavideoError, OSError, RuntimeError) as error:  # torch's own are RuntimeErrors
        return Finding(name, False, str(error) or type(error).__name__)
