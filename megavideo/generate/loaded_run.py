"""A trained run opened for sampling: its settings, its model with one state of its weights, and its encoders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from megavideo.checkpoint.manifest import Manifest
from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.config.dump import from_yaml
from megavideo.config.schema.train import TrainRun
from megavideo.encoders.folder import Encoders, load_encoders
from megavideo.errors import CheckpointError
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers

SAMPLING_FILE = "sampling.json"


@dataclass(frozen=True)
class LoadedRun:
    """`fps` is the dataset's most common frame rate."""

    config: TrainRun
    manifest: Manifest
    model: DiT
    encoders: Encoders
    fps: float


def load_run(place: Path, *, weights: str, dtype: torch.dtype, device: torch.device) -> LoadedRun:
    """Open a run folder, or one checkpoint in it; `weights` is `ema` or `raw`.

    Raises CheckpointError where there is no whole checkpoint or the run's encoders are missing.
    """
    folder = find_checkpoint(place)
    reader = CheckpointReader(folder)
    run_folder = folder.parent.parent
    config = from_yaml(TrainRun, reader.manifest.config, source=str(folder / "manifest.json"))
    with torch.device("meta"):
        model = DiT(config.model, LocalLayers())
    state = reader.whole("ema" if weights == "ema" else "weight")
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False).to(device, dtype).eval()
    return LoadedRun(config, reader.manifest, model, load_encoders(run_folder / "encoders"), sampling_fps(run_folder))


def sampling_fps(run_folder: Path) -> float:
    """Frames a second at which a run is sampled. Raises CheckpointError where its folder does not tell."""
    path = run_folder / SAMPLING_FILE
    try:
        return float(json.loads(path.read_text())["fps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}). Remedy: give ckpt= a run folder as `megavideo train` wrote it"
        ) from error
