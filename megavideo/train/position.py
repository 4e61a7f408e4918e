"""Where a run stands between two steps, beside its weights: what a checkpoint carries for the loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from megavideo.border.fields import Count
from megavideo.border.json_text import parse_json
from megavideo.border.refused import Refused
from megavideo.errors import CheckpointError


@dataclass(frozen=True)
class Position:
    """The stage under way and what it did so far.

    The stage began after `first_step` steps of the run, and its visits count from `first_visit`; once it is `finished`
    (by `steps`, `samples`, `tokens` or `plateau`) those of the next stage count from `next_visit`. `samples` and
    `tokens` are what the stage trained on. `passed_over` are steps, counted from 0, whose data is left out for good
    after a rollback. `best_loss` is the lowest validation loss and `stale` how many validations did not improve on it;
    `losses` are the last ones, from which the limit of a spike follows.
    """

    stage: str = ""
    number: Count = 0
    first_step: Count = 0
    first_visit: Count = 0
    next_visit: Count = 0
    finished: str | None = None
    samples: Count = 0
    tokens: Count = 0
    passed_over: tuple[Count, ...] = ()
    rollbacks: Count = 0
    best_loss: float | None = None
    stale: Count = 0
    losses: tuple[float, ...] = ()

    def trained(self, samples: int, tokens: int) -> Position:
        """After one more step on so many samples and tokens."""
        return replace(self, samples=self.samples + samples, tokens=self.tokens + tokens)

    def validated(self, loss: float, share: float) -> Position:
        """After a validation: it improves on the best where it is lower by more than `share` of it."""
        if self.best_loss is None or loss < self.best_loss * (1.0 - share):
            return replace(self, best_loss=loss, stale=0)
        return replace(self, stale=self.stale + 1)

    def rolled_back(self, passed_over: tuple[int, ...]) -> Position:
        """As a checkpoint had it, after going back to it: the data of these steps is left out from now on."""
        steps = tuple(sorted({*self.passed_over, *passed_over}))
        return replace(self, passed_over=steps, rollbacks=self.rollbacks + 1)

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)


def read_position(progress: Mapping[str, Any], source: object) -> Position:
    """The position in the manifest of checkpoint `source`; that of a run without stages where it has none.

    Raises CheckpointError where it is damaged.
    """
    try:
        return parse_json(json.dumps(progress), Position)
    except Refused as error:
        raise CheckpointError(f"{source}: its progress is damaged ({error}). Remedy: use another checkpoint") from error
