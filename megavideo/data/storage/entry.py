"""What a store tells of an object without sending it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """An object by its name as the store has it, which nobody has checked yet, its size, and what its content is.

    `version` (ETag and size) is another one wherever the content is.
    """

    name: str
    num_bytes: int
    version: str
