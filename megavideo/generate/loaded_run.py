"""A trained run opened for sampling: its settings, its model with one state of its weights, and its encoders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from megavideo.border.json_text import read_json
from megavideo.border.refused import Refused
from megavideo.checkpoint.base import open_weights
from megavideo.checkpoint.finite import say_non_finite
from megavideo.checkpoint.manifest import Manifest
from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.config.dump import from_yaml
from megavideo.config.schema.precision import AttentionName
from megavideo.config.schema.train import TrainRun
from megavideo.encoders.folder import Encoders, load_encoders
from megavideo.errors import CheckpointError, NumericsError
from megavideo.generate.rates import RunRates
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.optim.adamw import EMA
from megavideo.parallel.attention.candidates import Need
from megavideo.parallel.attention.choose import choose_attention
from megavideo.parallel.engines.fragments import WEIGHT
from megavideo.parallel.materialise import materialise

SAMPLING_FILE = "sampling.json"


@dataclass(frozen=True)
class LoadedRun:
    """`rates` are those of the dataset. `low` is the model for noise levels below a boundary, if any."""

    config: TrainRun
    manifest: Manifest
    model: DiT
    encoders: Encoders
    encoders_folder: Path
    rates: RunRates
    low: DiT | None = None

    @property
    def fps(self) -> float:
        """The dataset's most common frame rate."""
        return self.rates.fps


def load_run(
    place: Path, *, weights: str, attention: AttentionName = "auto", dtype: torch.dtype, device: torch.device
) -> LoadedRun:
    """Open a run folder, or one checkpoint in it; `weights` is `ema` or `raw`, `attention` a kernel or `auto`.

    Raises CheckpointError where there is no whole checkpoint or the run's encoders are missing, NumericsError where
    weights are not finite, and ConfigError where the kernel cannot run here.
    """
    folder = find_checkpoint(place)
    reader = CheckpointReader(folder)
    run_folder = folder.parent.parent
    config = from_yaml(TrainRun, reader.manifest.config, source=str(folder / "manifest.json"))
    layers = LocalLayers(choose_attention(attention, Need(config.model.head_dim, dtype), device, field="attention"))
    with torch.device("meta"):
        model = DiT(config.model, layers)
    values = open_weights(reader, config.lora.scale)
    unknown = values.shapes.keys() - dict(model.named_parameters()).keys()
    if unknown:
        raise CheckpointError(
            f"{folder}: the model of its settings has no parameter {min(unknown)!r}. Remedy: sample with the version "
            "of megavideo that wrote it"
        )
    state = EMA if weights == "ema" else WEIGHT
    materialise(model, lambda name, shape: values.value(state, name, shape), device, dtype)
    if values.non_finite:
        other = "weights=raw, or " if state == EMA else ""
        raise NumericsError(
            f"{folder}: {say_non_finite(values.non_finite)}. Remedy: take {other}an earlier checkpoint as ckpt=; "
            "`megavideo checkpoint verify RUN` tells which are finite"
        )
    model.requires_grad_(False).eval()
    encoders = run_folder / "encoders"
    return LoadedRun(config, reader.manifest, model, load_encoders(encoders), encoders, run_rates(run_folder))


def run_rates(run_folder: Path) -> RunRates:
    """Frames a second that a run was trained on. Raises CheckpointError where its folder does not tell."""
    path = run_folder / SAMPLING_FILE
    try:
        return read_json(path, RunRates)
    except (OSError, Refused) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}). Remedy: give ckpt= a run folder as `megavideo train` wrote it"
        ) from error
