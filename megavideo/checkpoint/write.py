"""Writing a checkpoint whole or not at all: into a hidden folder, flushed, and renamed when every rank is done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
import xxhash
from safetensors.torch import save_file

from megavideo.checkpoint.manifest import (
    FORMAT,
    MANIFEST,
    UNFINISHED,
    FileEntry,
    FragmentEntry,
    Manifest,
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
    shapes: dict[str, tuple[int, ...]]
    config: str


def write_checkpoint(checkpoints: Path, header: Header, fragments: Iterable[Fragment], *, keep: int) -> Path:
    """Save this rank's fragments with all other ranks' and keep the newest `keep` checkpoints; a collective call.

    Raises CheckpointError on every rank where any of them failed; what was there before stays.
    """
    final = step_folder(checkpoints, header.step)
    working = checkpoints / f"{UNFINISHED}{final.name}"
    rank = dist.get_rank()
    if rank == 0:
        for stale in checkpoints.glob(f"{UNFINISHED}*"):  # left by a killed save
            shutil.rmtree(stale)
        working.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    entry, steps, failure = _write_rank(working, rank, fragments)
    gathered: list[tuple[FileEntry | None, int, str]] = [(None, 0, "")] * dist.get_world_size()
    dist.all_gather_object(gathered, (entry, steps, failure))
    failures = [f"rank {i}: {text}" for i, (_, _, text) in enumerate(gathered) if text]
    if failures:
        raise CheckpointError(f"{final}: not saved; the checkpoints before it are untouched. {'; '.join(failures)}")
    if rank == 0:
        files = tuple(file for file, _, _ in gathered if file is not None)
        updates = max(count for _, count, _ in gathered)
        manifest = Manifest(FORMAT, header.step, updates, header.layout, header.shapes, header.config, files)
        _write_flushed(working / MANIFEST, manifest.to_json().encode())
        if final.exists():  # the same step saved again after a resume
            shutil.rmtree(final)
        os.replace(working, final)
        _flush_folder(checkpoints)
        for old in list_checkpoints(checkpoints)[:-keep]:
            shutil.rmtree(old)
    dist.barrier()
    return final


def _write_rank(working: Path, rank: int, fragments: Iterable[Fragment]) -> tuple[FileEntry | None, int, str]:
    tensors, entries, steps = {}, [], 0
    for fragment in fragments:
        steps = max(steps, int(fragment.steps))
        for state, values in fragment.states.items():
            key = f"{state}/{fragment.name}@{fragment.start}"
            tensors[key] = values.cpu().contiguous()
            entries.append(FragmentEntry(key, state, fragment.name, fragment.start, fragment.numel))
    if not tensors:
        return None, steps, ""
    path = working / f"fragments_{rank:05d}.safetensors"
    try:
        save_file(tensors, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        digest = xxhash.xxh64(path.read_bytes()).hexdigest()
        return FileEntry(path.name, path.stat().st_size, digest, tuple(entries)), steps, ""
    except Exception as error:  # noqa: BLE001 - told to all ranks, which raise it together
        return None, steps, f"{type(error).__name__}: {error}"


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
