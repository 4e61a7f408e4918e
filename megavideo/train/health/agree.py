"""Ranks go into a step together or not at all: the fault that one rank meets is every rank's, with its message.

Without this the others would wait at a collective, or end in the transport's own traceback. In the same collective they
agree on whether any of them was asked to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from megavideo.errors import DataError, MegavideoError, OutputInUse, StoreUnreachable

T = TypeVar("T")


def in_agreement(inputs: Iterator[T], device: torch.device) -> Iterator[T]:
    """The inputs, each once every rank has its own; a collective per step. Raises what `until_asked` does."""
    for given, _ in until_asked(inputs, device, lambda: False):
        yield given


def until_asked(inputs: Iterator[T], device: torch.device, asked: Callable[[], bool]) -> Iterator[tuple[T, bool]]:
    """The inputs, each once every rank has its own, and whether any rank was `asked` to stop; a collective per step.

    Raises the rank's own MegavideoError, or an error that names the other ranks which failed and why.
    """
    while True:
        given, failure = None, None
        try:
            given = next(inputs, None)
        except MegavideoError as error:
            failure = error
        state = torch.tensor([float(failure is not None), float(asked())], device=device)
        dist.all_reduce(state)
        failed, stop = state.tolist()
        if failed > 0:
            raise _common(failure)
        if given is None:
            return
        yield given, stop > 0


def _common(failure: MegavideoError | None) -> MegavideoError:
    messages: list[tuple[str, str] | None] = [None] * dist.get_world_size()
    mine = None if failure is None else (str(failure), type(failure).__name__)
    dist.all_gather_object(messages, mine)
    if failure is not None:
        return failure
    told = [(rank, message) for rank, message in enumerate(messages) if message is not None]
    # what is a reason to start again for one rank is so for those that did not meet it
    passing = {kind.__name__: kind for kind in (StoreUnreachable, OutputInUse)}
    kinds = {kind for _, (_, kind) in told}
    common = passing.get(kinds.pop(), DataError) if len(kinds) == 1 else DataError
    return common("; ".join(f"rank {rank} failed: {text}" for rank, (text, _) in told))
