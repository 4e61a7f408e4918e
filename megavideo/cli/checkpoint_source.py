"""The checkpoints that a command is given: a run's, or one of them, in a folder or a store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def shelf(place: str) -> Any:
    """The checkpoints of a run, or the one that is named. Raises CheckpointError where that is not there."""
    from megavideo.checkpoint.manifest import PREFIX
    from megavideo.checkpoint.read import find_checkpoint
    from megavideo.checkpoint.survey import Shelf
    from megavideo.data.storage.open import is_object_store, open_storage
    from megavideo.errors import CheckpointError

    parent, _, last = place.rstrip("/").rpartition("/")
    only = last if last.startswith(PREFIX) else None
    source: Any
    if is_object_store(place):
        source = open_storage(parent if only else place)
    else:
        source = Path(place).resolve().parent if only else find_checkpoint(Path(place)).parent
    shelf = Shelf(source, only)
    if not shelf.names():
        there = Shelf(source).names()
        remedy = f"take one of {', '.join(there)}" if there else "give the place that a run saves to, with its name"
        raise CheckpointError(f"{place}: no such checkpoint. Remedy: {remedy}")
    return shelf


@contextmanager
def brought_here(place: str) -> Iterator[Path]:
    """A checkpoint, or a run's newest, as a folder; of a store, a copy for as long as the block lasts."""
    from megavideo.checkpoint.fetch import fetch_checkpoint
    from megavideo.checkpoint.read import find_checkpoint
    from megavideo.checkpoint.survey import Shelf
    from megavideo.data.storage.open import is_object_store

    if not is_object_store(place):
        yield find_checkpoint(Path(place))
        return
    found: Shelf = shelf(place)
    with tempfile.TemporaryDirectory(prefix="megavideo-checkpoint-") as folder:
        # as in a run folder, so that what is looked for beside it is looked for in a folder of our own
        checkpoints = Path(folder) / "checkpoints"
        yield fetch_checkpoint(found.storage, found.names()[-1], checkpoints, lambda file: None)
