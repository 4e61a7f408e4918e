"""Signs of life of all ranks, in the key-value store through which the process group met.

Each rank writes its own key, again and again; a rank that wants to know who holds it up reads all of them twice. Who
wrote nothing in between is stopped, dead or cut off. No clock of another machine is trusted for that.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from megavideo.border.json_text import parse_json

ENDED = "ended"  # what a rank is doing that left the loop
_MOVED = "moved"

Reason = Literal["silent", "ended", "behind", "elsewhere"]


class Store(Protocol):
    """What is used of `torch.distributed.Store`; each call may raise RuntimeError."""

    def set(self, key: str, value: str) -> None:
        """Write one key."""
        ...

    def add(self, key: str, amount: int) -> int:
        """Add to a number that begins with 0; its new value."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        ...

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """The values of keys that are there, by one question to the server."""
        ...


@dataclass(frozen=True)
class Heartbeat:
    """What a rank last wrote; `count` grows with each writing, and `hung` tells of one whose own limit has passed."""

    rank: int
    host: str
    step: int
    doing: str
    count: int
    hung: bool = False


@dataclass(frozen=True)
class Laggard:
    """A rank that holds up the others, and why it is believed to; host, step and doing are those last heard of."""

    rank: int
    host: str
    step: int
    doing: str
    reason: Reason

    def __str__(self) -> str:
        """One line of a report."""
        texts = {
            "silent": f"no sign of life (stopped, dead or cut off); last heard of at step {self.step}, {self.doing}",
            "ended": f"has left the training loop at step {self.step}",
            "behind": f"is behind, at step {self.step}, {self.doing}",
            "elsewhere": f"is {self.doing} at step {self.step}, unlike others",
        }
        return f"rank {self.rank} on {self.host}: {texts[self.reason]}"


class Heartbeats:
    """The signs of life of the `world_size` ranks that share `store`."""

    def __init__(self, store: Store, world_size: int) -> None:
        self._store = store
        self._world_size = world_size

    def write(self, beat: Heartbeat) -> None:
        """Write this rank's. Raises RuntimeError where the store is gone."""
        self._store.set(str(beat.rank), json.dumps(asdict(beat)))

    def moved(self, more: bool) -> int:
        """A number that all ranks share, made greater where this one has `more` to tell. Raises RuntimeError likewise.

        One number, so that asking costs as little among thousands of ranks as among two.
        """
        return self._store.add(_MOVED, int(more))

    def read(self) -> dict[int, Heartbeat]:
        """Those of all ranks that ever wrote. Raises RuntimeError where the store is gone or does not answer."""
        keys = [str(rank) for rank in range(self._world_size)]
        if not self._store.check(keys):
            keys = [key for key in keys if self._store.check([key])]
        found = (parse_json(value, Heartbeat) for value in (self._store.multi_get(keys) if keys else []))
        return {beat.rank: beat for beat in found}

    def laggards(self, interval_seconds: float) -> list[Laggard]:
        """Who holds up the others, as two readings tell that lie `interval_seconds` and a half apart.

        `interval_seconds` is the time between two writings of a rank. Raises RuntimeError like `read`.
        """
        before = self.read()
        time.sleep(1.5 * interval_seconds)
        return compare(before, self.read(), self._world_size)


def compare(before: Mapping[int, Heartbeat], after: Mapping[int, Heartbeat], world_size: int) -> list[Laggard]:
    """The ranks that hold up the others, by rank: the silent and the ended; where there are none, those behind.

    Where all are at one step, it is those that do there what the most do not, or all where there is no such most; none
    where all do the same.
    """
    gone = [_gone(before.get(rank), after.get(rank), rank) for rank in range(world_size)]
    found = [laggard for laggard in gone if laggard is not None]
    if found or not after:
        return found
    latest = max(beat.step for beat in after.values())
    behind = [beat for beat in after.values() if beat.step < latest]
    if behind:
        return _as_laggards(behind, "behind")
    (most, *others) = Counter(beat.doing for beat in after.values()).most_common()
    divided = bool(others) and others[0][1] == most[1]  # no telling which half waits for which
    return _as_laggards([beat for beat in after.values() if divided or beat.doing != most[0]], "elsewhere")


def _gone(before: Heartbeat | None, after: Heartbeat | None, rank: int) -> Laggard | None:
    if after is None:
        return Laggard(rank, "a host that never told its name", 0, "starting", "silent")
    if after.doing == ENDED:
        return Laggard(rank, after.host, after.step, after.doing, "ended")
    moves = after.hung or before is None or after.count > before.count
    return None if moves else Laggard(rank, after.host, after.step, after.doing, "silent")


def _as_laggards(beats: Sequence[Heartbeat], reason: Reason) -> list[Laggard]:
    return [Laggard(beat.rank, beat.host, beat.step, beat.doing, reason) for beat in sorted(beats, key=_rank)]


def _rank(beat: Heartbeat) -> int:
    return beat.rank
