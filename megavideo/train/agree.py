"""Ranks go into a step together or not at all: the fault that one rank meets is every rank's, with its message.

Without this the others would wait at a collective, or end in the transport's own traceback.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist

from megavideo.errors import DataError, MegavideoError
from megavideo.train.feed import StepInput


def in_agreement(inputs: Iterator[StepInput], device: torch.device) -> Iterator[StepInput]:
    """The inputs, each once every rank has its own; a collective per step.

    Raises the rank's own MegavideoError, or a DataError that names the other ranks which failed and why.
    """
    while True:
        given, failure = None, None
        try:
            given = next(inputs, None)
        except MegavideoError as error:
            failure = error
        failed = torch.tensor(float(failure is not None), device=device)
        dist.all_reduce(failed)
        if failed > 0:
            raise _common(failure)
        if given is None:
            return
        yield given


def _common(failure: MegavideoError | None) -> MegavideoError:
    messages: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(messages, None if failure is None else str(failure))
    if failure is not None:
        return failure
    return DataError("; ".join(f"rank {rank} failed: {text}" for rank, text in enumerate(messages) if text))
