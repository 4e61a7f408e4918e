"""The model computing with the moving average of its weights, for a while.

Weights and averages change places where the optimizer keeps them, in each rank's own part, and the model then takes its
weights from there as it does after an update. So no second copy of the model is made anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megavideo.parallel.engines.engine import Engine
from megavideo.parallel.engines.fragments import held_places

_AVERAGE = "ema"  # among the optimizer's states
_CHUNK = 1 << 22  # elements that are held twice while they change places


def has_average(engine: Engine) -> bool:
    """Whether the run keeps an average (`optim.ema_decay`)."""
    return any(_AVERAGE in state for state in engine.base_optimizer.state.values())


@contextmanager
def averaged_weights(engine: Engine) -> Iterator[None]:
    """Inside the block the model computes with the average; a collective call of all processes, between two updates.

    Afterwards everything is bitwise as it was. Where the block raises, the optimizer's states are put back, and the
    model is left with the average: other ranks may not be there to give it its weights.
    """
    _change_places(engine)
    try:
        _take_weights(engine)
        yield
    except BaseException:
        _change_places(engine)
        raise
    _change_places(engine)
    _take_weights(engine)


@torch.no_grad()
def _change_places(engine: Engine) -> None:
    flats = {id(place.flat): place.flat for place in held_places(engine)}
    for flat in flats.values():
        weights, average = flat.detach().view(-1), engine.base_optimizer.state[flat][_AVERAGE].view(-1)
        for some, others in zip(weights.split(_CHUNK), average.split(_CHUNK), strict=True):
            kept = some.clone()
            some.copy_(others)
            others.copy_(kept)


def _take_weights(engine: Engine) -> None:
    """The model's weights from the optimizer's; without ZeRO they are the same tensors."""
    if engine.zero in (1, 2):
        engine.deepspeed.optimizer.update_lp_params()
    elif engine.zero == 3:
        engine.publish_weights()
