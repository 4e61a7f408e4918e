"""Weights that a run begins with: those of another run, or of Wan, for a model of the same settings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from megavideo.checkpoint.manifest import MANIFEST, list_checkpoints, settings_of
from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.checkpoint.weight_reader import WeightReader
from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.train import TrainRun
from megavideo.config.word import as_word
from megavideo.errors import CheckpointError, ConfigError
from megavideo.interop.source import Source, expert_levels, find_source
from megavideo.interop.wan_reader import WanReader
from megavideo.observe.run_folder import RunFolder


def open_start_weights(place: str, config: TrainRun) -> WeightReader:
    """The weights at `place`: a run folder, a checkpoint, or a file or folder of Wan; for a run of these settings.

    Raises ConfigError naming the first setting of the model in which they differ, or the levels that an expert does not
    know, CheckpointError where they cannot be read.
    """
    model, expert = config.model, config.init_expert
    if "://" in place:
        raise CheckpointError(
            f"{place}: weights are read from a folder. Remedy: bring them here, as with megavideo checkpoint "
            f"reshard {place} out=weights ranks=1, and give that folder"
        )
    path = Path(place)
    if _is_ours(path):
        if expert is not None:
            raise ConfigError("init_expert", expert, f"has no effect: {place} holds one model", "leave it out")
        reader = CheckpointReader(find_checkpoint(path))
        told = settings_of(reader.manifest.config, str(reader.folder)).get("model", {})
        _check_same(place, model, told if isinstance(told, dict) else {})
        return reader
    source = find_source(path, expert, "init_expert")
    _check_levels(source, config.diffusion.sigma_range)
    weights = WanReader(source, None if source.config else model.heads)
    _check_same(place, model, asdict(weights.model))
    weights.check()
    return weights


def _check_levels(source: Source, trained: tuple[float, float] | None) -> None:
    """Raise ConfigError for a run on noise levels that the other one of a pipeline's experts is for."""
    if source.expert is None or source.boundary_ratio is None:
        return
    low, high = expert_levels(source.expert, source.boundary_ratio)
    if trained is None or trained[0] < low or trained[1] > high:
        rule = f"the {source.expert} expert in {source.pipeline} is for the levels from {low:g} to {high:g} alone"
        remedy = f"write diffusion.sigma_range=[{low:g},{high:g}], or name {source.place} to train it on others"
        raise ConfigError("diffusion.sigma_range", trained and list(trained), rule, remedy)


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
