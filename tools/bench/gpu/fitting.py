"""How many blocks must be computed again in the backward pass for a step to fit the device's memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from session import Session
from shapes import Content
from step_run import random_dit

from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.train import RecomputeConfig
from megavideo.model.attention.operator import Attention
from megavideo.model.layers import LocalLayers
from megavideo.model.recompute import saved_bytes

_SHARE = 0.85  # of the free memory that a step may take; the rest is temporary
STATE_BYTES = 8  # a parameter: weight, gradient and both moments in bf16


@dataclass(frozen=True)
class Fit:
    """What is computed again, for the model and as text. `kept_bytes` are what one block keeps otherwise."""

    config: RecomputeConfig | None
    text: str
    kept_bytes: int


def fit(
    session: Session, model: ModelConfig, content: Content, attention: Attention, models: int = 1, more: float = 1.0
) -> Fit:
    """Count what one block keeps for its backward pass, and recompute as many whole blocks as need be.

    There is to be room for the states of so many `models`, and for `more` times what ours keeps. Raises RuntimeError
    where not even a model that keeps nothing fits.
    """
    first, per_block, parameters = _measured(session, model, content, attention)
    free = session.sizes.memory_bytes or torch.cuda.mem_get_info(session.device)[0]
    room = _SHARE * free - models * STATE_BYTES * parameters - more * first
    again = blocks_again(model.layers, round(more * per_block), content.pack_tokens * model.width * 2, room)
    if again is None:
        raise RuntimeError(f"does not fit {free / 2**30:.1f} GiB, even with every block computed again")
    if again == 0:
        return Fit(None, "none", per_block)
    return Fit(RecomputeConfig(kind="full", layers=again), f"{again} of {model.layers} blocks", per_block)


def blocks_again(layers: int, kept_bytes: int, input_bytes: int, room_bytes: float) -> int | None:
    """The fewest blocks to compute again, so that what all keep fits with one computed again; None if none does."""
    for again in range(layers + 1):
        once_more = kept_bytes if again else 0
        if (layers - again) * kept_bytes + again * input_bytes + once_more <= room_bytes:
            return again
    return None


def _measured(session: Session, model: ModelConfig, content: Content, attention: Attention) -> tuple[int, int, int]:
    """Bytes kept outside of blocks and by each block, and the number of parameters of the whole model."""
    kept, counts = [], []
    pack = content.pack(model, session.device, torch.bfloat16)
    for layers in (1, 2):
        dit = random_dit(model, layers, LocalLayers(attention), session.device)
        kept.append(saved_bytes(partial(dit, pack), dit.parameters()))
        counts.append(sum(parameter.numel() for parameter in dit.parameters()))
    per_block = kept[1] - kept[0]
    return kept[0] - per_block, per_block, counts[0] + (model.layers - 1) * (counts[1] - counts[0])
