"""The only place where rooms are wired: a config and the started processes to everything a loop needs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from megavideo.config.layout import Layout, parse_layout
from megavideo.config.schema.train import TrainRun
from megavideo.data.dataset.dataset import ENCODERS_PREFIX, LatentDataset, open_dataset
from megavideo.data.plan.step_plan import StagePlace
from megavideo.data.storage.open import download_all
from megavideo.data.storage.retry import RetryPolicy
from megavideo.data.stream.shards import ShardReader, StreamOptions
from megavideo.diffusion.objective import build_objective
from megavideo.encoders.folder import load_autoencoder
from megavideo.errors import ConfigError
from megavideo.model.dit import DiT
from megavideo.model.init import initial_value
from megavideo.optim.build import build_optimizer
from megavideo.parallel.engines.engine import Engine, EnginePlan
from megavideo.parallel.parallelize import parallelize
from megavideo.parallel.processes.distributed import Launch, check_precision
from megavideo.parallel.processes.groups import Groups
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.train.loss.loss_terms import Decode, build_loss_terms
from megavideo.train.packs.feed import Feed, shard_cache
from megavideo.train.step import squared_error

_WHOLE_RUN = StagePlace()


@dataclass(frozen=True)
class Parts:
    """What a training run is made of."""

    layout: Layout
    mesh: ProcessMesh
    dataset: LatentDataset
    reader: ShardReader
    feed: Feed
    engine: Engine


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
    cache_gb = config.data.cache_gb
    options = StreamOptions(config.data.workers, None if cache_gb is None else cache_gb * 1e9)
    reader = ShardReader(dataset, shard_cache(config, dataset), options)
    feed = Feed(config, dataset, reader, build_objective(config.diffusion), mesh, place)
    groups = Groups.of(mesh)
    plan = EnginePlan(
        layout=layout,
        mesh=mesh,
        groups=groups,
        dtype=torch.bfloat16 if config.train.precision == "bf16" else torch.float32,
        micro_steps=config.train.packs_per_step // mesh.dp,
        clip=config.optim.clip,
        token_loss=squared_error,
        layers=config.layers,
        terms=build_loss_terms(
            config.diffusion.terms, config.model.patch, mesh, groups, _decode(config, dataset), launch.device
        ),
    )
    engine = parallelize(
        lambda layers, part: DiT(config.model, layers, part=part, recompute=config.train.recompute),
        config.model.layers,
        lambda name, shape: initial_value(name, shape, config.train.seed),
        lambda module: build_optimizer(module, config.optim),
        plan,
        launch.device,
    )
    engine.create_state()
    return Parts(layout, mesh, dataset, reader, feed, engine)


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
