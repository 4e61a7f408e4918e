"""Notes by which ranks that save together tell each other how far they are."""

from __future__ import annotations

import time
from dataclasses import dataclass

from megavideo.checkpoint.place import Place, SaveId
from megavideo.checkpoint.waiting import Patience

_ATTEMPTS, _PAUSE_SECONDS = 6, 0.1
_DONE_SECONDS = 60.0  # all that ranks have to do is to look once more
_NO_REASON = "no room even for the reason"


@dataclass(frozen=True)
class Notes:
    """The notes of one save as one rank leaves and reads them."""

    place: Place
    save: SaveId
    rank: int
    world_size: int
    patience: Patience

    def leave(self, kind: str, text: str = "") -> None:
        """Leave this rank's note of a kind, `KIND_RRRRR`. Raises OSError where the disk refuses again and again."""
        self.tell(_of_rank(kind, self.rank), text)

    def tell(self, note: str, text: str = "") -> None:
        """Leave a note that only one rank leaves."""
        for attempt in range(_ATTEMPTS):
            try:
                return self.place.post(self.save, note, text)
            except OSError:
                if attempt == _ATTEMPTS - 1:
                    raise
            time.sleep(_PAUSE_SECONDS * 2**attempt)  # others may be about to make room
        return None

    def texts(self, kind: str) -> list[str]:
        """The notes of a kind, by rank, all of which are there."""
        return [self.place.read(self.save, _of_rank(kind, rank)) for rank in range(self.world_size)]

    def faults(self, good: str, bad: str) -> dict[int, str]:
        """What went wrong, by rank, once each has left a note of one kind or the other, or was waited for in vain."""
        left: set[str] = set()

        def all_answered() -> bool | None:
            left.update(self.place.notes(self.save))
            silent = (r for r in range(self.world_size) if not {_of_rank(good, r), _of_rank(bad, r)} & left)
            return True if next(silent, None) is None else None

        self.patience.wait_for(all_answered)
        faults = {}
        for rank in range(self.world_size):
            if _of_rank(bad, rank) in left:
                faults[rank] = self.place.read(self.save, _of_rank(bad, rank)) or _NO_REASON
            elif _of_rank(good, rank) not in left:
                faults[rank] = "left no word in time"
        return faults

    def outcome(self, good: str, bad: str) -> tuple[bool, str]:
        """Whether rank 0 told the good note, and its text."""

        def told() -> str | None:
            return next((note for note in (good, bad) if self.place.has(self.save, note)), None)

        note = self.patience.wait_for(told, times=2)  # rank 0 itself waits for others
        if note is None:
            return False, f"rank {self.rank} heard nothing of rank 0 in time"
        text = self.place.read(self.save, note)
        return note == good, text or ("" if note == good else _NO_REASON)

    def end(self) -> None:
        """Remove all notes once every rank has left `done`; where one does not, the next start of the run will."""

        def all_done() -> bool | None:
            left = set(self.place.notes(self.save))
            return True if all(_of_rank("done", rank) in left for rank in range(self.world_size)) else None

        if self.patience.wait_for(all_done, most_seconds=_DONE_SECONDS):
            self.place.end(self.save)


def _of_rank(kind: str, rank: int) -> str:
    return f"{kind}_{rank:05d}"
