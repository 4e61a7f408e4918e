"""A sign of life of saves: that pieces still go where they shall, however slowly."""

from __future__ import annotations

import threading


class SaveProgress:
    """Counts what the threads of this rank's saves have put in place: pieces of files, objects put or removed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces = 0

    @property
    def pieces(self) -> int:
        """So far; only that it has grown means something, as pieces are of any size."""
        return self._pieces

    def add(self) -> None:
        """One more; by any thread."""
        with self._lock:
            self._pieces += 1
