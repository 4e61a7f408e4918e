"""Runs checks one by one: a line for each, and a summary at the end."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Outcome:
    """One check. `value` is the largest error found, which passes below `limit`."""

    name: str
    passed: bool
    value: float | None
    limit: float | None
    seconds: float
    error: str | None


@dataclass
class Checks:
    """The outcomes so far."""

    outcomes: list[Outcome] = field(default_factory=list)

    def run(self, name: str, check: Callable[[], float | None], limit: float | None = None) -> None:
        """Run a check that returns an error to be below `limit`, or None where it passes by not raising."""
        begin, value, error = time.perf_counter(), None, None
        try:
            value = check()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        except Exception as fault:  # noqa: BLE001  a broken check is an outcome, and the others still run
            place = traceback.extract_tb(fault.__traceback__)[-1]
            first = next(iter(str(fault).strip().splitlines()), "")
            error = f"{type(fault).__name__}: {first} ({place.filename.rsplit('/', 1)[-1]}:{place.lineno})"
        # a value that is not a number is below nothing
        passed = error is None and (limit is None or (value is not None and value < limit))
        outcome = Outcome(name, passed, value, limit, round(time.perf_counter() - begin, 2), error)
        self.outcomes.append(outcome)
        said = error or ("" if value is None else f"{value:.2e}" + ("" if limit is None else f" < {limit:g}"))
        print(f"{'ok  ' if passed else 'FAIL'}  {name:58s} {said}  {outcome.seconds:.1f} s", flush=True)

    def summary(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Facts of the machine and all outcomes, JSON-ready."""
        failed = [outcome.name for outcome in self.outcomes if not outcome.passed]
        checks = [asdict(outcome) for outcome in self.outcomes]
        return facts | {"passed": len(checks) - len(failed), "failed": failed, "checks": checks}


def difference(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative difference in the Euclidean norm."""
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()
