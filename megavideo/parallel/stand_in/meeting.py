"""Where ranks tell each other what they call: keys in the store in which their process group met."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch.distributed as dist

_FIRST_POLL_SECONDS = 0.0002
_LAST_POLL_SECONDS = 0.004


class Absent(Exception):
    """Keys that did not come in time."""

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(", ".join(keys))
        self.keys = tuple(keys)


class Meeting:
    """A connection to a store, for any number of threads.

    It asks again and again and never waits in the store: a call that waits there holds the connection, and so would
    keep this process's other threads from telling what the awaited rank waits for.
    """

    def __init__(self, store: dist.Store) -> None:
        # the process group waits on its own
        self._store = store.clone()  # type: ignore[attr-defined]  # torch's stub lacks it

    def tell(self, key: str, text: str) -> None:
        """Set a key."""
        self._store.set(key, text)

    def told(self, key: str) -> str | None:
        """What a key holds now; None where it is not set."""
        return self._store.get(key).decode() if self._store.check([key]) else None

    def hear(self, keys: Sequence[str], seconds: float) -> Mapping[str, str]:
        """What each key holds, once all are set. Raises Absent with those that are not set after `seconds`."""
        end, pause = time.monotonic() + seconds, _FIRST_POLL_SECONDS
        while not self._store.check(list(keys)):
            if time.monotonic() > end:
                raise Absent([key for key in keys if not self._store.check([key])])
            time.sleep(pause)
            pause = min(2 * pause, _LAST_POLL_SECONDS)
        return {key: value.decode() for key, value in zip(keys, self._store.multi_get(list(keys)), strict=True)}
