"""What a part of the bench is given: the device, the time it may take, and what is known already."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from rows import Row, Value
from shapes import Sizes
from timing import Clock, DeviceLostError, Run, Timing, contest, describe, free_memory


@dataclass(frozen=True)
class Session:
    """One start of a part.

    `end` is when it should be over (`time.monotonic`). `earlier` are the rows of the parts before. Where an earlier
    start of the same part lost its device, `excluded` are the names that did it and `done` the cases with rows.
    `trying` is told what runs next, in case the process does not live to tell more.
    """

    part: str
    device: torch.device
    clock: Clock
    sizes: Sizes
    end: float
    earlier: Sequence[Row] = ()
    excluded: frozenset[str] = frozenset()
    done: frozenset[str] = frozenset()
    trying: Callable[[str], None] = field(default=lambda name: None)

    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()

    def row(self, case: str, name: str, values: Mapping[str, Value | None], note: str = "") -> Row:
        """A row of values."""
        return Row.measured(self.part, case, name, values, note)

    def failed(self, case: str, name: str, note: str) -> Row:
        """A row that says why there are no values."""
        return Row(self.part, case, name, "failed", note=note)

    def skipped(self, case: str, name: str, note: str) -> Row:
        """A row of what was not tried."""
        return Row(self.part, case, name, "skipped", note=note)

    def too_late(self, case: str, names: Sequence[str], need: float) -> list[Row]:
        """Rows that say so where fewer than `need` seconds are left."""
        left = self.left()
        if left >= need:
            return []
        note = f"takes about {need:.0f} s, of which {max(0.0, left):.0f} s are left to this part"
        return [self.skipped(case, name, note) for name in names]

    def compare(
        self,
        case: str,
        contestants: Mapping[str, Run],
        values: Callable[[str, Timing], Mapping[str, Value | None]],
        *,
        seconds: float,
        rounds: int = 9,
    ) -> Iterator[Row]:
        """A row for each contestant of a contest, with the numbers that `values` makes of its timing."""
        fit = {name: run for name, run in contestants.items() if name not in self.excluded}
        results = contest(
            fit,
            self.clock,
            min(seconds, self.left()),
            self.left(),
            most_rounds=min(rounds, self.sizes.most_rounds),
            shortest=self.sizes.shortest,
            trying=self.trying,
        )
        for name in contestants:
            found = results.get(name, "ended the process before, so that it was left out")
            if isinstance(found, str):
                yield self.failed(case, name, found)
            else:
                yield self.row(case, name, values(name, found))

    def guarded(self, case: str, names: Sequence[str], measure: Callable[[], Iterator[Row]]) -> Iterator[Row]:
        """The rows of one case; where it fails as a whole, a row that says so for each of `names`.

        Nothing for a case that has been measured before.
        """
        if case in self.done:
            return
        try:
            yield from measure()
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001  a case that fails is a row, and the others go on
            text = describe(error)
        else:
            text = ""
        free_memory()
        if text:
            yield from (self.failed(case, name, text) for name in names)


def spread_values(unit_name: str, timing: Timing) -> dict[str, Value | None]:
    """A timing in milliseconds under `unit_name`, with its spread."""
    return {
        f"{unit_name}_ms": timing.median * 1e3,
        f"{unit_name}_spread_percent": timing.spread * 100,
        "rounds": timing.rounds,
    }
