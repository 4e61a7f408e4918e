"""Work that ranks do each by itself, and whose end they agree on: one that fails would leave the others waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

import torch.distributed as dist

from megavideo.checkpoint.copying import named_by_rank
from megavideo.checkpoint.manifest import DamagedError
from megavideo.errors import CheckpointError, MegavideoError, OutputInUse, StoreUnreachable

Result = TypeVar("Result")
_DAMAGED, _UNREACHABLE, _IN_USE = "damaged", "unreachable", "in use"
_KINDS: dict[str, type[MegavideoError]] = {_UNREACHABLE: StoreUnreachable, _IN_USE: OutputInUse}


def in_agreement(work: Callable[[], Result]) -> tuple[Result | None, dict[int, str]]:
    """This rank's result, and what was damaged, by rank; a collective call.

    Raises an error on every rank where any failed by more than damage: StoreUnreachable or OutputInUse where that was
    all, else CheckpointError.
    """
    result: Result | None = None
    mine: tuple[str, str] | None = None
    try:
        result = work()
    except DamagedError as error:
        mine = (_DAMAGED, str(error))
    except StoreUnreachable as error:
        mine = (_UNREACHABLE, str(error))
    except OutputInUse as error:
        mine = (_IN_USE, str(error))
    except (MegavideoError, OSError) as error:
        mine = ("", str(error))
    found: list[tuple[str, str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    faults = {rank: text for rank, (_, text) in ((r, f) for r, f in enumerate(found) if f is not None)}
    kinds = {fault[0] for fault in found if fault is not None} - {_DAMAGED}
    if kinds:
        kind = next(iter(kinds)) if len(kinds) == 1 else ""
        raise _KINDS.get(kind, CheckpointError)(named_by_rank(faults))
    return result, faults


def from_rank_0(work: Callable[[], Result]) -> Result:
    """What rank 0 found, on every rank; a collective call. Raises as `in_agreement` does where it failed."""
    found, _ = in_agreement(work if dist.get_rank() == 0 else lambda: None)  # type: ignore[arg-type, return-value]
    shared = [found]
    dist.broadcast_object_list(shared)
    return shared[0]  # type: ignore[return-value]


@contextmanager
def entered_by_rank_0(context: Callable[[], AbstractContextManager[Result]]) -> Iterator[Result | None]:
    """A context that rank 0 is in for the duration of the block, None on the others; begins with a collective call.

    Raises as `in_agreement` does where it could not be entered.
    """
    with ExitStack() as stack:
        entered: list[Result] = []
        from_rank_0(lambda: entered.append(stack.enter_context(context())))
        yield entered[0] if entered else None
