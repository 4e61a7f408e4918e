"""Weights that a run begins with: those of another run, or of Wan, for a model of the same settings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from megavideo.checkpoint.manifest import MANIFEST, list_checkpoints, settings_of
from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.checkpoint.weight_reader import WeightReader
from megavideo.config.schema.model import ModelConfig
from megavideo.config.word import as_word
from megavideo.errors import CheckpointError, ConfigError
from megavideo.interop.source import find_source
from megavideo.interop.wan_reader import WanReader
from megavideo.observe.run_folder import RunFolder


def open_start_weights(place: str, model: ModelConfig) -> WeightReader:
    """The weights at `place`: a run folder, a checkpoint, or a file or folder of Wan; for a run of `model`.

    Raises ConfigError naming the first setting of the model in which they differ, CheckpointError where they cannot be
    read.
    """
    if "://" in place:
        raise CheckpointError(
            f"{place}: weights are read from a folder. Remedy: bring them here, as with megavideo checkpoint "
            f"reshard {place} out=weights ranks=1, and give that folder"
        )
    path = Path(place)
    if _is_ours(path):
        reader = CheckpointReader(find_checkpoint(path))
        told = settings_of(reader.manifest.config, str(reader.folder)).get("model", {})
        _check_same(place, model, told if isinstance(told, dict) else {})
        return reader
    source = find_source(path)
    weights = WanReader(source, None if source.config else model.heads)
    _check_same(place, model, asdict(weights.model))
    weights.check()
    return weights


def _is_ours(path: Path) -> bool:
    run = RunFolder(path)
    here = (path / MANIFEST, run.config, run.checkpoints)
    return any(place.exists() for place in here) or bool(list_checkpoints(path))


def _check_same(place: str, model: ModelConfig, theirs: dict[str, object]) -> None:
    """An older checkpoint does not tell of settings that came later: then the parameters have to fit."""
    for name, mine in asdict(model).items():
        other = theirs.get(name, mine)
        other = tuple(other) if isinstance(other, list) else other  # as YAML has it
        if other != mine:
            word = as_word(f"model.{name}", other)
            raise ConfigError(
                f"model.{name}", mine, f"the weights in {place} are of a model with {word}", f"write {word}"
            )
