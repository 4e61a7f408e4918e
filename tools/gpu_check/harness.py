"""Runs checks one by one: a line for each, and a summary that is written down as it grows.

Sections run in processes of their own, since a kernel's fault can spoil a device for the whole process.
"""

from __future__ import annotations

import json
import multiprocessing
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from megavideo.observe.whole_file import write_file
from megavideo.parallel.processes.forked import end_with_parent
from tools.gpu_check.unasked import Unasked

SECTION_SECONDS = 120.0
_LEAVE_SECONDS = 10.0  # for a process that has told all


@dataclass(frozen=True)
class Outcome:
    """One check. `value` is the largest error found, which passes below `limit`; `skipped` says why it was not made."""

    name: str
    passed: bool
    value: float | None
    limit: float | None
    seconds: float
    error: str | None
    skipped: str | None = None


@dataclass
class Checks:
    """The outcomes so far, and facts of the machine; both are written to `path` at each, where there is one."""

    path: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    _parent: Connection | None = None  # in the process of a section: what takes the outcomes over

    def run(self, name: str, check: Callable[[], float | None], limit: float | None = None) -> None:
        """Run a check that returns an error to be below `limit`, or None where it passes by not raising."""
        begin, value, error, skipped = time.perf_counter(), None, None, None
        try:
            value = check()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        except Unasked as reason:
            skipped = str(reason)
        except Exception as fault:  # noqa: BLE001  a broken check is an outcome, and the others still run
            error = _described(fault)
        self._add(name, begin, value, limit, error, skipped)

    def section(self, name: str, run: Callable[[], None]) -> None:
        """Run several checks; where what they have in common fails, that is an outcome of its own."""
        begin = time.perf_counter()
        try:
            run()
        except Exception as fault:  # noqa: BLE001  the others still run
            self._add(f"{name}: what its checks need", begin, error=_described(fault))

    def apart(self, name: str, run: Callable[[], None], seconds: float = SECTION_SECONDS) -> None:
        """A section in a forked process, which ends after so many seconds; until then nothing may have used the device.

        One that is lost or takes too long is an outcome of its own.
        """
        begin, context = time.perf_counter(), multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=self._live, args=(name, run, theirs), name=name)
        process.start()
        theirs.close()
        value: Any = None
        fault, kind = "", ""
        while kind != "end":
            if not ours.poll(max(0.0, begin + seconds - time.perf_counter())):
                fault = f"stopped after {seconds:.0f} s"
                break
            try:
                kind, value = ours.recv()
            except (EOFError, ConnectionResetError):
                process.join(_LEAVE_SECONDS)
                fault = f"ended with status {process.exitcode}"
                break
            if kind == "outcome":
                self._keep(value)
            elif kind == "facts":
                self.add_facts(value)
        process.join(0.0 if fault else _LEAVE_SECONDS)
        process.kill()
        process.join()
        if fault:
            self._add(f"{name}: its process", begin, error=fault)

    def _live(self, name: str, run: Callable[[], None], parent: Connection) -> None:
        """The process of a section."""
        end_with_parent()
        self._parent = parent
        self.section(name, run)
        parent.send(("end", None))

    def add_facts(self, facts: dict[str, Any]) -> None:
        """Facts of the machine, for the summary."""
        if self._parent is not None:
            self._parent.send(("facts", facts))
        else:
            self.facts |= facts

    def _add(
        self,
        name: str,
        begin: float,
        value: float | None = None,
        limit: float | None = None,
        error: str | None = None,
        skipped: str | None = None,
    ) -> None:
        # a value that is not a number is below nothing
        passed = error is None and skipped is None and (limit is None or (value is not None and value < limit))
        outcome = Outcome(name, passed, value, limit, round(time.perf_counter() - begin, 2), error, skipped)
        said = (
            error or skipped or ("" if value is None else f"{value:.2e}" + ("" if limit is None else f" < {limit:g}"))
        )
        mark = "ok  " if passed else "FAIL" if skipped is None else "skip"
        print(f"{mark}  {name:58s} {said}  {outcome.seconds:.1f} s", flush=True)
        self._keep(outcome)

    def _keep(self, outcome: Outcome) -> None:
        if self._parent is not None:
            self._parent.send(("outcome", outcome))
            return
        self.outcomes.append(outcome)
        if self.path is not None:
            write_file(self.path, (json.dumps(self.summary()) + "\n").encode())

    def summary(self) -> dict[str, Any]:
        """Facts of the machine and all outcomes, JSON-ready."""
        skipped = [outcome.name for outcome in self.outcomes if outcome.skipped is not None]
        failed = [outcome.name for outcome in self.outcomes if not outcome.passed and outcome.skipped is None]
        checks = [asdict(outcome) for outcome in self.outcomes]
        passed = len(checks) - len(failed) - len(skipped)
        return self.facts | {"passed": passed, "failed": failed, "skipped": skipped, "checks": checks}


def _described(fault: Exception) -> str:
    place = traceback.extract_tb(fault.__traceback__)[-1]
    first = next(iter(str(fault).strip().splitlines()), "")
    return f"{type(fault).__name__}: {first} ({place.filename.rsplit('/', 1)[-1]}:{place.lineno})"


def difference(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative difference in the Euclidean norm."""
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()
