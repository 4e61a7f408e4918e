"""What an engine holds as a model without one: the reference that layouts are compared with."""

from __future__ import annotations

from collections.abc import Iterator

from megavideo.config.schema.model import ModelConfig
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.optim.adamw import EMA
from megavideo.parallel.engines.engine import Engine


def plain_models(engine: Engine, config: ModelConfig) -> Iterator[tuple[str, DiT]]:
    """A model of the `weights`, then the same one with the `averages`, of an engine of one process without ZeRO."""
    model = DiT(config, LocalLayers())
    weights = dict(engine.named_parameters())
    averages = {name: engine.base_optimizer.state[weight][EMA] for name, weight in weights.items()}
    for kind, values in (("weights", weights), ("averages", averages)):
        model.load_state_dict({name: value.detach().view_as(weights[name]) for name, value in values.items()})
        yield kind, model
