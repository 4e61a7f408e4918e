"""A checkpoint written anew in another number of files, one file's states in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from megavideo.checkpoint.manifest import Header, step_name
from megavideo.checkpoint.read import CheckpointReader
from megavideo.checkpoint.write import write_alone
from megavideo.parallel.engines.fragments import Fragment
from megavideo.parallel.layers.sharding import WHOLE


@dataclass(frozen=True)
class Resharded:
    """The new checkpoint."""

    place: str
    step: int
    num_files: int
    size_bytes: int


def reshard(folder: Path, out: Path, ranks: int) -> Resharded:
    """Write the checkpoint in `folder` into `out`, under its own name: `ranks` files with equal shares of all elements.

    Everything else that it says stays. Raises CheckpointError where it is damaged or holds values that are not finite,
    or `out` has one of that name.
    """
    reader = CheckpointReader(folder)
    old = reader.manifest
    header = Header(old.step, old.layout, old.config, old.progress, old.validation_loss, old.stage_end, old.base)
    shares = (list(_share(reader, rank, ranks)) for rank in range(ranks))
    manifest = write_alone(out, header, old.optimizer_steps, shares, reader.check_finite)
    return Resharded(str(out / step_name(manifest.step)), manifest.step, len(manifest.files), manifest.size_bytes)


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
