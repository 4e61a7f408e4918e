"""Checkpoints of an autoencoder's training: weights, optimizer states and average as safetensors, whole or not at all.

All of it is whole on every rank, so that the first one writes and a run may go on with another number of processes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from megavideo.autoencoder.trainer import VaeTrainer
from megavideo.border.fields import Count
from megavideo.border.json_text import read_json
from megavideo.border.tensor_file import open_tensors, reading_tensors
from megavideo.errors import CheckpointError

VAE_FOLDER = "vae"
_PREFIX = "step_"
_UNFINISHED = ".writing-"
_TENSORS, _FACTS = "state.safetensors", "state.json"
_FORMAT = 1


def save_state(folder: Path, step: int, trainer: VaeTrainer, keep: int) -> Path:
    """Write the state after `step` steps and keep the newest `keep`; CheckpointError where the disk refuses."""

    def write(place: Path) -> None:
        tensors = {name: values.detach().cpu().contiguous().clone() for name, values in _states(trainer)}
        save_file(tensors, place / _TENSORS)
        (place / _FACTS).write_text(json.dumps({"format": _FORMAT, "step": step}))

    path = folder / f"{_PREFIX}{step:08d}"
    write_folder(path, write)
    for old in saved_states(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def load_newest_state(folder: Path, trainer: VaeTrainer) -> int:
    """Fill the trainer from the newest checkpoint and return its number of steps; 0 where there is none.

    Raises CheckpointError where the file is damaged or belongs to another model.
    """
    found = saved_states(folder)
    if not found:
        return 0
    path = found[-1]
    trainer.engine.create_state()
    if trainer.adversary is not None:
        trainer.adversary.create_state()
    try:
        step = read_json(path / _FACTS, _Facts).step
        with open_tensors(path / _TENSORS) as file, reading_tensors():
            names = set(file.keys())
            for name, values in _states(trainer):
                stored = file.get_tensor(name) if name in names else None
                if stored is None or stored.shape != values.shape:
                    raise ValueError(f"{name} is missing or of another shape")
                values.copy_(stored)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}). Remedy: remove this folder to go on from the checkpoint before it, or "
            "give name= another run"
        ) from error
    return step


@dataclass(frozen=True)
class _Facts:
    step: Count


def saved_states(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if (path / _FACTS).is_file())


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a hidden folder and give it its name; what was there before stays until then.

    Raises CheckpointError where the disk refuses.
    """
    working = path.parent / f"{_UNFINISHED}{path.name}"
    old = path.parent / f"{_UNFINISHED}old-{path.name}"
    try:
        for stale in (working, old):
            shutil.rmtree(stale, ignore_errors=True)
        working.mkdir(parents=True)
        write(working)
        for file in working.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        if path.exists():
            os.replace(path, old)
        os.replace(working, path)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: not saved ({error}); what was saved before is untouched. Remedy: make room or correct the "
            "folder's rights; the same command then goes on from the last checkpoint"
        ) from error


def _states(trainer: VaeTrainer) -> Iterator[tuple[str, torch.Tensor]]:
    for name, values in trainer.engine.named_states():
        yield f"autoencoder/{name}", values
    if trainer.adversary is not None:
        # before its start it has no states, and after a resume it has them at zero: both are the same
        trainer.adversary.create_state()
        for name, values in trainer.adversary.named_states():
            yield f"adversary/{name}", values
