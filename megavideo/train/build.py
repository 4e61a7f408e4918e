"""The only place where rooms are wired: a config and the started processes to everything a loop needs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from megavideo.checkpoint.agreement import in_agreement
from megavideo.checkpoint.base import Base
from megavideo.checkpoint.copying import named_by_rank
from megavideo.config.layout import Layout, layout_parts, parse_layout
from megavideo.config.schema.train import TrainRun
from megavideo.data.dataset.dataset import ENCODERS_PREFIX, LatentDataset, open_dataset
from megavideo.data.plan.step_plan import StagePlace
from megavideo.data.storage.open import download_all
from megavideo.data.storage.retry import RetryPolicy
from megavideo.data.stream.shards import ShardReader, StreamOptions
from megavideo.data.table.sound import check_sound
from megavideo.device.choice import copies_for
from megavideo.diffusion.objective import build_objective
from megavideo.encoders.folder import load_autoencoder
from megavideo.errors import CheckpointError, ConfigError
from megavideo.model.dit import DiT
from megavideo.model.init import initial_value
from megavideo.optim.build import build_optimizer
from megavideo.parallel.adapters.adapt import adapted, check_targets, parameter_names
from megavideo.parallel.adapters.low_rank import BRANCH
from megavideo.parallel.engines.engine import Engine, EnginePlan
from megavideo.parallel.parallelize import parallelize
from megavideo.parallel.processes.distributed import Launch, check_precision
from megavideo.parallel.processes.groups import Groups
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.train.given_latents import check_given_latents
from megavideo.train.loss.loss_terms import Decode, build_loss_terms
from megavideo.train.packs.feed import Feed, shard_cache
from megavideo.train.packs.noising import TrainBatch
from megavideo.train.step import squared_error

_WHOLE_RUN = StagePlace()


@dataclass(frozen=True)
class Parts:
    """What a training run is made of; `base` is there where it trains adapters alone."""

    layout: Layout
    mesh: ProcessMesh
    dataset: LatentDataset
    reader: ShardReader
    feed: Feed
    engine: Engine
    base: Base | None = None


def build_parts(config: TrainRun, launch: Launch, version: int | None = None, place: StagePlace = _WHOLE_RUN) -> Parts:
    """Make the parts of a run on this process; `version` of the dataset is the newest if it is None.

    `place` is where the stage that `config` describes stands in its run. Raises ConfigError, DataError or TopologyError
    where settings, dataset and processes do not fit each other.
    """
    check_precision("train.precision", config.train.precision, launch.device)
    layout = parse_layout(config.layout)
    mesh = ProcessMesh.of(layout, config.model.heads, launch.rank, launch.world_size)
    _check_packs(config, mesh)
    dataset = open_dataset(config.data.uri, RetryPolicy(config.data.retry_seconds), version)
    _check_dataset(config, dataset)
    check_given_latents(config, dataset, "data.uri")
    cache_gb = config.data.cache_gb
    options = StreamOptions(config.data.workers, None if cache_gb is None else cache_gb * 1e9)
    reader = ShardReader(dataset, shard_cache(config, dataset), options)
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    stage = partial(TrainBatch.staged, copies=copies_for(launch.device), dtype=dtype)
    feed = Feed(config, dataset, reader, build_objective(config.diffusion), mesh, place, stage)
    check_sound(dataset, feed.selected.table)
    groups = Groups.of(mesh, launch.device)
    plan = EnginePlan(
        layout=layout,
        mesh=mesh,
        groups=groups,
        dtype=dtype,
        micro_steps=config.train.packs_per_step // mesh.dp,
        clip=config.optim.clip,
        token_loss=squared_error,
        head_dim=config.model.head_dim,
        layers=config.layers,
        terms=build_loss_terms(
            config.diffusion.terms, config.model.patch, mesh, groups, _decode(config, dataset), launch.device
        ),
    )
    base = _open_base(config, layout)
    engine = parallelize(
        adapted(
            lambda layers, part: DiT(config.model, layers, part=part, recompute=config.train.recompute),
            config.lora,
            groups.tp,
            sp=mesh.sp,
        ),
        config.model.layers,
        partial(_start_value, config, base),
        lambda module: build_optimizer(module, config.optim),
        plan,
        launch.device,
    )
    if base is not None:
        base.reader.check_finite()
    engine.create_state()
    return Parts(layout, mesh, dataset, reader, feed, engine, base)


def _open_base(config: TrainRun, layout: Layout) -> Base | None:
    """The base of adapters, once they fit the model and its stages; None where there are none. A collective call."""
    if config.lora.base is None:
        return None
    check_targets(config.lora, config.model, layout_parts(config.model.layers, layout))
    place = config.lora.base
    base, faults = in_agreement(lambda: Base(place))
    if base is None or faults:
        raise CheckpointError(named_by_rank(faults))
    base.check_model(parameter_names(config.model))
    return base


def _start_value(config: TrainRun, base: Base | None, name: str, shape: torch.Size) -> torch.Tensor:
    """The base's value of what it has, else the run's own."""
    if base is None or f".{BRANCH}." in name:
        return initial_value(name, shape, config.train.seed)
    return base.value(name, shape)


def _decode(config: TrainRun, dataset: LatentDataset) -> Decode | None:
    """The frozen decoder of the dataset's autoencoder, where a term of the loss looks at pixels."""
    if not config.diffusion.terms.perceptual:
        return None
    with tempfile.TemporaryDirectory(prefix="megavideo-encoders-") as folder:
        download_all(dataset.storage, ENCODERS_PREFIX, Path(folder))
        autoencoder = load_autoencoder(Path(folder))
    return autoencoder.decode_for_loss


def _check_packs(config: TrainRun, mesh: ProcessMesh) -> None:
    packs = config.train.packs_per_step
    if packs % mesh.dp:
        lower, upper = packs // mesh.dp * mesh.dp, (packs // mesh.dp + 1) * mesh.dp
        legal = " or ".join(str(number) for number in (lower, upper) if number)
        raise ConfigError(
            "train.packs_per_step",
            packs,
            f"the {mesh.dp} data-parallel ranks must share a step's packs evenly",
            f"set it to {legal}, or start another number of processes",
        )


def _check_dataset(config: TrainRun, dataset: LatentDataset) -> None:
    info, model = dataset.info, config.model
    facts = (
        ("model.latent_channels", model.latent_channels, info.latent_channels),
        ("model.text_dim", model.text_dim, info.text_dim),
    )
    for name, mine, theirs in facts:
        if mine != theirs:
            raise ConfigError(name, mine, f"the dataset {dataset.uri} has {theirs}", f"set {name}={theirs}")
    if any(theirs % ours for ours, theirs in zip(model.patch, info.patch, strict=True)):
        raise ConfigError(
            "model.patch",
            model.patch,
            f"the dataset {dataset.uri} was cut to sizes that patch {info.patch} divides",
            f"set model.patch={list(info.patch)}, or encode again with patch={list(model.patch)}",
        )
