"""One process as the only rank: mesh, groups, DeepSpeed's engine and Transformer Engine's layers, as in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from megavideo.config.layout import parse_layout
from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.optim import OptimConfig
from megavideo.config.schema.precision import LayersConfig
from megavideo.config.schema.train import RecomputeConfig
from megavideo.device.choice import copies_for
from megavideo.model.attention.operator import Attention
from megavideo.model.dit import DiT
from megavideo.model.layers import Layers, LocalLayers
from megavideo.model.pack_index import PackBounds
from megavideo.optim.build import build_optimizer
from megavideo.parallel.attention.candidates import Need
from megavideo.parallel.attention.choose import choose_attention
from megavideo.parallel.engines.engine import Engine, EnginePlan, MicroBatch, StepOutcome
from megavideo.parallel.layers.te_layers import build_layers
from megavideo.parallel.parallelize import parallelize
from megavideo.parallel.processes.distributed import process_group
from megavideo.parallel.processes.groups import Groups
from megavideo.parallel.processes.mesh import ProcessMesh

LAYOUT = "zero1"
HEAD_DIM = 128
_HEADS = 4  # nothing is shared out, so that any number does


@dataclass(frozen=True)
class OneRank:
    """The only process of a layout."""

    mesh: ProcessMesh
    groups: Groups
    device: torch.device

    def layers(self, config: LayersConfig, attention: Attention | None = None) -> Layers:
        """The layers that `config` asks for; ConfigError where this machine cannot run them."""
        attention = attention or attention_here(self.device)
        return build_layers(config, self.mesh, self.groups, attention, self.device, copies=copies_for(self.device))

    def engine(
        self,
        model: ModelConfig,
        start: Callable[[str, torch.Size], torch.Tensor],
        optim: OptimConfig,
        recompute: RecomputeConfig | None = None,
    ) -> Engine:
        """The engine that trains `model` in bf16 under ZeRO-1, one pack a step."""
        plan = EnginePlan(
            layout=parse_layout(LAYOUT),
            mesh=self.mesh,
            groups=self.groups,
            dtype=torch.bfloat16,
            micro_steps=1,
            clip=optim.clip,
            token_loss=squared_error,
            head_dim=model.head_dim,
        )
        return parallelize(
            lambda layers, part: DiT(model, layers, part=part, recompute=recompute),
            model.layers,
            start,
            lambda module: build_optimizer(module, optim),
            plan,
            self.device,
        )


def one_update(engine: Engine, batch: MicroBatch, scale: float, learning_rate: float) -> StepOutcome:
    """A step of one pack; see `Engine.update`."""
    return engine.update([batch], [PackBounds.of(batch.pack)], scale, learning_rate)


@contextmanager
def one_rank() -> Iterator[OneRank]:
    """A process group of this process alone, as training makes it, for the duration of a block."""
    with process_group() as launch:
        mesh = ProcessMesh.of(parse_layout(LAYOUT), _HEADS, launch.rank, launch.world_size)
        yield OneRank(mesh, Groups.of(mesh, launch.device), launch.device)


def squared_error(prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Each token's mean square error: prediction and target [N, P], weight [N] -> [N]."""
    return (prediction.float() - target).square().mean(-1) * weight


def attention_here(device: torch.device) -> Attention:
    """The attention that training takes by itself on this device."""
    return choose_attention("auto", Need(HEAD_DIM, torch.bfloat16), device)


def local_layers(device: torch.device) -> LocalLayers:
    """The layers of one process of plain torch on this device."""
    return LocalLayers(attention_here(device), copies=copies_for(device))
