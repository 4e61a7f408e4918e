"""`megavideo import`: weights of a Wan transformer, and the encoders beside it, as a run folder of ours."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from megavideo.border.fields import Positive
from megavideo.border.json_text import read_json
from megavideo.border.refused import Refused
from megavideo.checkpoint.manifest import Header
from megavideo.checkpoint.write import write_alone
from megavideo.config.dump import to_yaml
from megavideo.config.load import load
from megavideo.config.rules import check
from megavideo.config.schema.diffusion import ConditionConfig
from megavideo.config.schema.import_ import ImportRun
from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.train import TrainRun
from megavideo.encoders.folder import PipelineEncoders
from megavideo.errors import CheckpointError, ConfigError
from megavideo.interop.source import MODEL_INDEX, Source, expert_levels
from megavideo.interop.wan_reader import WanReader
from megavideo.observe.run_folder import create_run_folder
from megavideo.observe.whole_file import making_folder, write_file
from megavideo.parallel.engines.fragments import WEIGHT, Fragment
from megavideo.parallel.layers.sharding import WHOLE

PRESET = "wan_finetune"
_PART_BYTES = 1 << 28  # in a file, or one tensor where that is larger
_LARGE_LATENT = 48  # channels of Wan 2.2's TI2V-5B, which has 24 frames a second and the others 16 (its model card)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportReport:
    """What was imported. `shift` is that of the pipeline's scheduler, None where none tells; `encoders` as kept."""

    out: str
    src: str
    dialect: str
    expert: str | None
    model: dict[str, Any]
    parameters: int
    size_bytes: int
    shift: float | None
    boundary_ratio: float | None
    expand_timesteps: bool
    encoders: str
    notes: tuple[str, ...]


def import_weights(cfg: ImportRun) -> ImportReport:
    """Make the run folder `cfg.out`, with one checkpoint of step 0, of the weights in `cfg.src`.

    Weights keep the type that they are stored in. Everything is checked before anything is written, and the folder is
    there whole or not at all. Raises CheckpointError where the weights are not those of a Wan transformer or cannot be
    written, ConfigError where a setting is missing, has no effect, or the model cannot be run.
    """
    out = Path(cfg.out)
    if out.exists():
        raise CheckpointError(f"{out}: is there already. Remedy: give another folder as out=")
    reader = WanReader.at(Path(cfg.src), cfg.expert, cfg.heads)
    shift = _shift(reader.source)
    boundary = _boundary(cfg, reader.source)
    config = _run_config(cfg, reader, shift, boundary)
    reader.check()
    encoders = None if reader.source.pipeline is None else PipelineEncoders.at(reader.source.pipeline)
    if encoders is not None:
        _check_encoders(encoders, reader.model, reader.source)
    text = to_yaml(config)
    try:
        with making_folder(out) as folder:
            places = create_run_folder(folder, text, sys.argv)
            fps = 24.0 if reader.model.latent_channels == _LARGE_LATENT else 16.0
            write_file(folder / "sampling.json", json.dumps({"fps": fps}).encode())
            if encoders is not None:
                encoders.save(places.encoders)
            header = Header(0, config.layout, text)
            size_bytes = write_alone(places.checkpoints, header, 0, _parts(reader)).size_bytes
    except OSError as error:
        raise CheckpointError(
            f"{out}: cannot be written ({error.strerror}). Remedy: make room, or correct the path and its rights"
        ) from error
    return _report(cfg, reader, encoders, (shift, boundary), size_bytes)


def _parts(reader: WanReader) -> Iterator[list[Fragment]]:
    part: list[Fragment] = []
    num_bytes = 0
    for done, (name, shape) in enumerate(reader.shapes.items(), 1):
        value = reader.stored(name).flatten()
        reader.check_finite()
        part.append(Fragment(name, shape, WHOLE, 0, {WEIGHT: value}, torch.tensor(0.0)))
        num_bytes += value.nbytes
        if num_bytes >= _PART_BYTES or done == len(reader.shapes):
            yield part
            _log.info("imported %d of %d parameters", done, len(reader.shapes))
            part, num_bytes = [], 0


def _boundary(cfg: ImportRun, source: Source) -> float | None:
    """The noise level at which two transformers meet; of one that stands alone what its pipeline says.

    Raises ConfigError where neither the folder nor the settings tell it, or both tell another.
    """
    said = source.boundary_ratio
    if source.expert is None:
        if cfg.boundary is not None:
            raise ConfigError("boundary", cfg.boundary, f"has no effect: {cfg.src} is one transformer", "leave it out")
        return said
    if said is None and cfg.boundary is None:
        rule = f"{cfg.src} holds two transformers, and nothing in it says at which noise level the one takes over"
        remedy = "add boundary=0.875 for Wan 2.2's text to video and boundary=0.9 for its image to video"
        raise ConfigError("boundary", None, rule, remedy)
    if None not in (said, cfg.boundary) and said != cfg.boundary:
        raise ConfigError("boundary", cfg.boundary, f"{MODEL_INDEX} says {said}", "leave it out")
    return said or cfg.boundary


def _run_config(cfg: ImportRun, reader: WanReader, shift: float | None, boundary: float | None) -> TrainRun:
    """Settings of a run that trains on; ConfigError where such a model cannot be run."""
    place, model, expert = Path(cfg.out).absolute(), reader.model, reader.source.expert
    preset = load(TrainRun, "train", [f"run={PRESET}", "init_from=given", "data.uri=none"])
    diffusion = preset.diffusion
    if model.given_channels:  # Wan's models of images to videos are told the first frame there, each time
        diffusion = replace(diffusion, conditions=ConditionConfig(text=0.0, image_to_video=1.0))
    if expert is not None and boundary is not None:
        diffusion = replace(diffusion, sigma_range=expert_levels(expert, boundary))
    config = replace(
        preset,
        name=place.name,
        output=str(place.parent),
        init_expert=expert,
        init_from=str(Path(cfg.src).absolute()),
        model=model,
        diffusion=diffusion if shift is None else replace(diffusion, shift=shift),
    )
    check(config)
    return config


@dataclass(frozen=True)
class _Scheduler:
    """diffusers calls the same thing `flow_shift` in its multistep schedulers, and `shift` in the Euler one."""

    flow_shift: Positive | None = None
    shift: Positive | None = None


def _shift(source: Source) -> float | None:
    if source.pipeline is None:
        return None
    path = source.pipeline / "scheduler" / "scheduler_config.json"
    try:
        found = read_json(path, _Scheduler)
    except FileNotFoundError:
        return None
    except (OSError, Refused) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Remedy: copy the file again") from error
    return found.shift if found.flow_shift is None else found.flow_shift


def _check_encoders(encoders: PipelineEncoders, model: ModelConfig, source: Source) -> None:
    """A pipeline with the autoencoder or text encoder of another model decodes noise."""
    for part, mine, theirs in (
        ("vae", model.latent_channels, encoders.autoencoder.latent_channels),
        ("text_encoder", model.text_dim, encoders.text_dim),
    ):
        if mine != theirs:
            raise _other_part(source, part, theirs, mine)
    image = encoders.image
    if image is not None and model.image_dim not in (None, image.dim):
        raise _other_part(source, "image_encoder", image.dim, model.image_dim)


def _other_part(source: Source, part: str, theirs: int, mine: int | None) -> CheckpointError:
    return CheckpointError(
        f"{source.pipeline}: {part} has {theirs} channels, and the transformer {mine}: they belong to different "
        "models. Remedy: give the pipeline with its own parts"
    )


def _report(
    cfg: ImportRun,
    reader: WanReader,
    encoders: PipelineEncoders | None,
    levels: tuple[float | None, float | None],
    size_bytes: int,
) -> ImportReport:
    source, model, (shift, boundary) = reader.source, reader.model, levels
    notes = []
    if source.config is None and cfg.heads is None:
        notes.append(f"no config.json: {model.heads} heads, one for each 128 of the width, as every Wan has")
    if encoders is None:
        notes.append("no autoencoder and text encoder beside it: it can be trained from, not sampled")
    else:
        notes.append("sample it with weights=raw: there is no average before training")
    if source.expert is not None:
        other = "low" if source.expert == "high" else "high"
        notes.append(
            f"one of two experts: import the other with expert={other} and another out=, and sample with the high one "
            f"as ckpt=, the low one as low_ckpt= and boundary={boundary}"
        )
    return ImportReport(
        cfg.out, str(source.place), reader.dialect, source.expert, asdict(model),
        sum(torch.Size(shape).numel() for shape in reader.shapes.values()), size_bytes, shift,
        boundary, source.expand_timesteps, "none" if encoders is None else "wan, transformers",
        tuple(notes),
    )  # fmt: skip
