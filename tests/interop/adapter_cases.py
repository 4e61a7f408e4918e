"""A run folder of random whole weights, and one of random adapters beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from megavideo.checkpoint.base import Base
from megavideo.checkpoint.manifest import Header
from megavideo.checkpoint.write import write_alone
from megavideo.config.dump import to_yaml
from megavideo.config.schema.lora import LoraConfig
from megavideo.config.schema.train import TrainRun
from megavideo.model.dit import DiT
from megavideo.model.init import parameter_generator
from megavideo.model.layers import LocalLayers
from megavideo.parallel.adapters.adapt import adapted
from megavideo.parallel.engines.fragments import WEIGHT, Fragment
from megavideo.parallel.layers.sharding import WHOLE
from megavideo.testing.saved_run import write_run
from megavideo.testing.settings import micro_config

BLOCKS = ("blocks.*",)


def base_config(output: Path, **model: int) -> TrainRun:
    """A run whose model Wan's network can express."""
    sizes = {"layers": 2, "width": 48, "ffn": 64, "heads": 2, "time_dim": 16, **model}
    settings = {f"model__{name}": value for name, value in sizes.items()}
    settings |= {"model__place_embedding": "false", "model__fps_conditioning": "false"}
    return micro_config(name="base", output=output, data__uri="latents", **settings)


def write_base(output: Path, **model: int) -> Path:
    """The run folder of whole weights, with averages that differ from them."""
    return write_run(base_config(output, **model))


def write_adapted(base: Path, out: Path, targets: Sequence[str] = BLOCKS, rank: int = 3) -> Path:
    """The run folder of adapters, of which no matrix is zero, and averages that differ from them."""
    found = Base(base)
    lora = LoraConfig(rank=rank, alpha=2.0 * rank, targets=tuple(targets), base=found.reference.checkpoint)
    config = replace(base_config(base.parent), lora=lora)
    model = adapted(lambda layers, part: DiT(config.model, layers, part=part), lora)(LocalLayers(), range(2))
    fragments = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            drawn = [torch.randn(parameter.numel(), generator=parameter_generator(i, name)) * 0.2 for i in range(2)]
            states = dict(zip((WEIGHT, "ema"), drawn, strict=True))
            fragments.append(Fragment(name, tuple(parameter.shape), WHOLE, 0, states, torch.tensor(4.0)))
    header = Header(4, "zero0", to_yaml(config), base=found.reference)
    write_alone(out / "checkpoints", header, 4, [fragments])
    return out
