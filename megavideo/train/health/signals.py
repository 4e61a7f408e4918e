"""Being asked to stop: signals are remembered, and the loop ends at the next step's boundary.

Slurm sends what `--signal=USR1@SECONDS` names before a job's time is over, and SIGTERM at its end or at `scancel`, in
both cases to the children of a task as well; SIGKILL follows `KillWait` (30 s) later. torchrun hands SIGTERM on to its
ranks, kills them 30 s later (`timeout` of `PContext.close` in torch 2.11, which no option changes) and ends with status
1; SIGUSR1 ends torchrun itself, unless `--signals-to-handle` names it beside SIGTERM, SIGINT, SIGHUP and SIGQUIT, and
then it kills the ranks after 30 s as well. A checkpoint that may take longer is therefore asked for with SIGUSR1 under
srun, early enough.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any

_ASKING = (signal.SIGTERM, signal.SIGUSR1)
# Slurm signals torchrun and its ranks at once, and torchrun then hands the signal on: one request, received twice
_SAME_REQUEST_SECONDS = 5.0


class StopRequest:
    """Whether this process was asked to stop, by SIGTERM or SIGUSR1, inside a `with` block on the main thread.

    A SIGTERM that comes more than 5 s after the first one ends the process at once, as it would without handlers.
    Processes forked inside the block are asked like this one, and do not end by it. A signal is noticed when the
    interpreter is next in control: one call into C, as a collective, is not cut short.
    """

    def __init__(self) -> None:
        self._first: signal.Signals | None = None
        self._terminated_at: float | None = None
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        """Install the handlers. Raises ValueError on another thread than the main one."""
        for number in _ASKING:
            self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._earlier.items():
            # None stands for a handler that C code had installed, and that Python cannot name
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._earlier.clear()

    @property
    def requested(self) -> str | None:
        """The name of the signal that came first, as `SIGUSR1`; None while none came."""
        return None if self._first is None else self._first.name

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._first is None:
            self._first = signal.Signals(number)
        if number != signal.SIGTERM:
            return
        now = time.monotonic()
        if self._terminated_at is None:
            self._terminated_at = now
        elif now - self._terminated_at > _SAME_REQUEST_SECONDS:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
