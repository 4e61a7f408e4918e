"""What a check found, and checks that end: one that hangs, as on a dead file system, has failed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from megavideo.errors import MegavideoError

# the columns of the table, in the order in which they are made
CHECKS = ("store", "output", "disk", "versions", "gpu", "matmul", "clock", "links")


@dataclass(frozen=True)
class Finding:
    """The outcome of one of CHECKS on one rank or node; `text` is short where it is good, and says all where not.

    `measured` is what is still to be compared between ranks: seconds, a hash, or versions by name.
    """

    check: str
    good: bool
    text: str
    measured: float | str | dict[str, str] | None = None


def limited(name: str, seconds: float, check: Callable[[], Finding]) -> Finding:
    """What `check` finds; a bad finding where it raises what a machine can cause, or has no answer in time.

    A check that hangs goes on in a thread of its own, which ends with the process.
    """
    found: list[Finding] = []
    defects: list[BaseException] = []

    def work() -> None:
        try:
            found.append(check())
        except (MegavideoError, OSError, RuntimeError) as error:  # torch's own are RuntimeErrors
            found.append(Finding(name, False, str(error) or type(error).__name__))
        except BaseException as error:  # noqa: BLE001 - raised below, by the thread that asked
            defects.append(error)

    thread = threading.Thread(target=work, name=f"preflight-{name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if defects:
        raise defects[0]
    return found[0] if found else Finding(name, False, f"no answer in {seconds:g} s")
