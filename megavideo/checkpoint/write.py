"""Writing a checkpoint whole or not at all: into a hidden folder, flushed, and renamed when every rank is done."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file

from megavideo.checkpoint.manifest import (
    FORMAT,
    MANIFEST,
    UNFINISHED,
    FileEntry,
    FragmentEntry,
    Manifest,
    file_digest,
    list_checkpoints,
    step_folder,
)
from megavideo.errors import CheckpointError
from megavideo.parallel.fragments import Fragment


@dataclass(frozen=True)
class Header:
    """What all ranks know of the checkpoint they are about to write."""

    step: int
    layout: str
    config: str


@dataclass(frozen=True)
class _RankPart:
    """What one rank wrote: its file, where it had fragments, its count of updates, and its parameters' whole shapes."""

    file: FileEntry | None
    steps: int
    shapes: dict[str, tuple[int, ...]]


def write_checkpoint(checkpoints: Path, header: Header, fragments: Iterable[Fragment], *, keep: int) -> Path:
    """Save this rank's fragments with all other ranks' and keep the newest `keep` checkpoints; a collective call.

    Raises CheckpointError on every rank where any of them failed; what was there before stays.
    """
    final = step_folder(checkpoints, header.step)
    working = checkpoints / f"{UNFINISHED}{final.name}"
    first = dist.get_rank() == 0
    _together(final, lambda: _prepare(working) if first else None)
    parts = _together(final, lambda: _write_rank(working, dist.get_rank(), fragments))
    _together(final, lambda: _publish(working, final, header, parts) if first else None)
    if first:
        _retain(checkpoints, keep)
    return final


def _together(final: Path, work: Callable[[], Any]) -> list[Any]:
    """Results of `work` on all ranks. Raises CheckpointError on every rank where it failed on any."""
    try:
        mine = (work(), "")
    except Exception as error:  # noqa: BLE001 - told to all ranks, which raise it together
        mine = (None, f"{type(error).__name__}: {error}")
    gathered: list[tuple[Any, str]] = [(None, "")] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    failures = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(gathered) if text]
    if failures:
        raise CheckpointError(
            f"{final}: not saved; the checkpoints before it are untouched. {'; '.join(failures)}. "
            "Remedy: make room or correct the folder's rights; the same command then goes on from the last checkpoint"
        )
    return [result for result, _ in gathered]


def _prepare(working: Path) -> None:
    for stale in working.parent.glob(f"{UNFINISHED}*"):  # left by a killed save
        shutil.rmtree(stale)
    working.mkdir(parents=True)


def _write_rank(working: Path, rank: int, fragments: Iterable[Fragment]) -> _RankPart:
    tensors, entries, steps, shapes = {}, [], 0, {}
    for fragment in fragments:
        steps = max(steps, int(fragment.steps))
        shapes[fragment.name] = fragment.shape
        shard, start, numel = fragment.shard, fragment.start, fragment.numel
        for state, values in fragment.states.items():
            key = f"{state}/{fragment.name}/{shard.index}of{shard.count}@{start}+{numel}"
            tensors[key] = values.cpu().contiguous()
            entries.append(FragmentEntry(key, state, fragment.name, shard, start, numel))
    if not tensors:
        return _RankPart(None, steps, shapes)
    path = working / f"fragments_{rank:05d}.safetensors"
    save_file(tensors, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    entry = FileEntry(path.name, path.stat().st_size, file_digest(path), tuple(entries))
    return _RankPart(entry, steps, shapes)


def _publish(working: Path, final: Path, header: Header, parts: Sequence[_RankPart]) -> None:
    """Describe what all ranks wrote, and give it its name."""
    files = tuple(part.file for part in parts if part.file is not None)
    updates = max(part.steps for part in parts)
    manifest = Manifest(FORMAT, header.step, updates, header.layout, _shapes(parts), header.config, files)
    _write_flushed(working / MANIFEST, manifest.to_json().encode())
    if final.exists():  # the same step saved again after a resume
        shutil.rmtree(final)
    os.replace(working, final)
    _flush_folder(final.parent)


def _shapes(parts: Sequence[_RankPart]) -> dict[str, tuple[int, ...]]:
    """Whole shapes of all parameters, of which a rank may hold some only."""
    shapes: dict[str, tuple[int, ...]] = {}
    for rank, part in enumerate(parts):
        for name, shape in part.shapes.items():
            if shapes.setdefault(name, shape) != shape:
                raise ValueError(f"parameter {name!r} is {shape} on rank {rank}, {shapes[name]} on one before it")
    return shapes


def _retain(checkpoints: Path, keep: int) -> None:
    """Remove all but the newest; each is renamed first, so that one half removed is not taken for a checkpoint."""
    for old in list_checkpoints(checkpoints)[:-keep]:
        doomed = checkpoints / f"{UNFINISHED}{old.name}"
        try:
            os.replace(old, doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            logging.getLogger(__name__).warning("%s: an old checkpoint could not be removed (%s)", old, error)


def _write_flushed(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
