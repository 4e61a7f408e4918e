"""A run folder as training leaves it, without training: a model of random weights whose average differs from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from megavideo.checkpoint.write import Header, write_checkpoint
from megavideo.config.dump import to_yaml
from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.train import TrainRun
from megavideo.encoders.folder import save_encoders
from megavideo.encoders.text.bytes_text import BytesTextEncoder
from megavideo.model.dit import DiT
from megavideo.model.init import init_weights, parameter_generator
from megavideo.model.layers import LocalLayers
from megavideo.observe.run_folder import create_run_folder
from megavideo.parallel.engines.fragments import WEIGHT, Fragment
from megavideo.parallel.layers.sharding import WHOLE
from megavideo.testing.dataset import TEXT_DIM, small_autoencoder

_SPREAD = 0.1


@contextmanager
def alone() -> Iterator[None]:
    """A process group of this process by itself, which collective calls need."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def random_model(config: ModelConfig, seed: int) -> DiT:
    """A model with no weight at zero, so that every part of it has a say in its output."""
    model = DiT(config, LocalLayers())
    init_weights(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=parameter_generator(seed + 1, name)), alpha=_SPREAD)
    return model


def fragments_of(weights: DiT, average: DiT) -> list[Fragment]:
    """Whole parameters, as one rank without ZeRO holds them."""
    averages = dict(average.named_parameters())
    return [
        Fragment(
            name,
            tuple(parameter.shape),
            WHOLE,
            0,
            {WEIGHT: parameter.detach().flatten(), "ema": averages[name].detach().flatten()},
            torch.tensor(5.0),
        )
        for name, parameter in weights.named_parameters()
    ]


def write_run(config: TrainRun, *, step: int = 5, seed: int = 0) -> Path:
    """Write the folder of a run of these settings with one checkpoint."""
    folder = create_run_folder(Path(config.output) / config.name, to_yaml(config), ["test"])
    save_encoders(folder.encoders, small_autoencoder(), BytesTextEncoder(TEXT_DIM, 16))
    (folder.root / "sampling.json").write_text('{"fps": 8.0}')
    weights, average = random_model(config.model, seed), random_model(config.model, seed + 1)
    with alone():
        header = Header(step, config.layout, to_yaml(config))
        write_checkpoint(folder.checkpoints, header, fragments_of(weights, average), keep=2)
    return folder.root
