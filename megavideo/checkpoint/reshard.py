"""A checkpoint written anew in another number of files, one file's states in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from megavideo.checkpoint.folder_place import FolderPlace
from megavideo.checkpoint.manifest import Header, Manifest
from megavideo.checkpoint.place import SaveId
from megavideo.checkpoint.rank_part import RankPart, manifest_of
from megavideo.checkpoint.read import CheckpointReader
from megavideo.checkpoint.snapshot import Snapshot
from megavideo.errors import CheckpointError
from megavideo.parallel.engines.fragments import Fragment
from megavideo.parallel.layers.sharding import WHOLE

_SESSION = "reshard"


@dataclass(frozen=True)
class Resharded:
    """The new checkpoint."""

    place: str
    step: int
    num_files: int
    size_bytes: int


def reshard(folder: Path, out: Path, ranks: int) -> Resharded:
    """Write the checkpoint in `folder` into `out`, under its own name: `ranks` files with equal shares of all elements.

    Everything else that it says stays. Raises CheckpointError where it is damaged, or `out` has one of that name.
    """
    reader = CheckpointReader(folder)
    old = reader.manifest
    header = Header(old.step, old.layout, old.config, old.progress, old.validation_loss, old.stage_end)
    place, save, snapshot = FolderPlace(out), SaveId(old.step, _SESSION, 0), Snapshot()
    if (out / save.name).exists():
        raise CheckpointError(f"{out / save.name}: is there already. Remedy: give another folder as out=")
    place.begin(save)
    try:
        parts = []
        for rank in range(ranks):
            state = snapshot.take(_share(reader, rank, ranks))
            parts.append(RankPart(tuple(place.write(save, rank, state)), old.optimizer_steps, state.shapes))
        manifest: Manifest = manifest_of(header, parts)
        place.publish(save, manifest)
    finally:
        place.end(save)
    return Resharded(str(out / save.name), manifest.step, len(manifest.files), manifest.size_bytes)


def _share(reader: CheckpointReader, rank: int, ranks: int) -> Iterator[Fragment]:
    """The ranges of whole parameters that make up one of `ranks` equal parts of them all, laid one after another."""
    shapes = reader.manifest.shapes
    total = sum(math.prod(shape) for shape in shapes.values())
    first, last, begin = total * rank // ranks, total * (rank + 1) // ranks, 0
    for name, shape in shapes.items():
        end = begin + math.prod(shape)
        low, high = max(first, begin), min(last, end)
        if low < high:
            states = {s: reader.read(s, name, WHOLE, low - begin, high - low) for s in sorted(reader.manifest.states)}
            yield Fragment(name, shape, WHOLE, low - begin, states, torch.tensor(0.0))
        begin = end
