"""What a rank says of a call, by which the ranks of a group find out whether they make the same one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from megavideo.border.json_text import parse_json
from megavideo.parallel.processes.passing_group import CALLS, tensors_in

# calls of which the ranks agree in what they get; of the others in what they give
_BY_RESULT = ("scatter", "reduce_scatter", "recv")


@dataclass(frozen=True)
class Signature:
    """A call of one rank: what must be the same on every rank, and numbers of elements that go to and come from each.

    The numbers are those of an all-to-all, else none.
    """

    text: str
    sends: tuple[int, ...] = ()
    takes: tuple[int, ...] = ()

    @classmethod
    def of(cls, method: str, arguments: Sequence[Any], size: int) -> Signature:
        """That of a call of a group of `size` ranks."""
        call = CALLS[method]
        if call.operation == "all_to_all":
            sends, takes = _counts(method, arguments, size)
            return cls(f"all_to_all {_kind(tensors_in(arguments[1]))}", sends, takes)
        index = call.taken if call.operation in _BY_RESULT else call.given
        # one end of a message calls it a send, the other a receive
        words = ["message" if call.operation in ("send", "recv") else call.operation]
        options: Any = arguments[-1] if arguments else None
        if hasattr(options, "reduceOp"):
            words.append(str(options.reduceOp.op).rpartition(".")[2])
        if hasattr(options, "rootRank"):
            words.append(f"(root {options.rootRank})")
        if index is not None:
            words.append(shapes(tensors_in(arguments[index])))
        if words[0] == "message":
            words.append(f"(tag {arguments[-1]})")
        return cls(" ".join(words))

    def to_json(self) -> str:
        """As `read` takes it."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Signature:
        """From what `to_json` gave."""
        return parse_json(text, cls)


def disagreement(signatures: Mapping[int, Signature]) -> str | None:
    """How the signatures of ranks, in the group's order, are not of one call; None where they are."""
    if len({signature.text for signature in signatures.values()}) > 1:
        return "; ".join(f"rank {rank} calls {signature.text}" for rank, signature in signatures.items())
    for i, (sender, sent) in enumerate(signatures.items()):
        for j, (taker, taken) in enumerate(signatures.items()):
            if sent.sends and sent.sends[j] != taken.takes[i]:
                return (
                    f"{sent.text}: rank {sender} sends {sent.sends[j]} elements to rank {taker}, which takes "
                    f"{taken.takes[i]}"
                )
    return None


def shapes(tensors: Sequence[torch.Tensor]) -> str:
    """Element type and shape of each: `float32 [2, 3]`."""
    return ", ".join(f"{_kind([tensor])} {list(tensor.shape)}" for tensor in tensors)


def _kind(tensors: Sequence[torch.Tensor]) -> str:
    return " and ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))


def _counts(method: str, arguments: Sequence[Any], size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Elements to and from each rank."""
    if method == "alltoall":
        return tuple(t.numel() for t in arguments[1]), tuple(t.numel() for t in arguments[0])
    taken, given, take_splits, give_splits = arguments[:4]
    counts = []
    for tensor, splits in ((given, give_splits), (taken, take_splits)):
        row = math.prod(tensor.shape[1:])
        counts.append(tuple(rows * row for rows in splits) if splits else (tensor.numel() // size,) * size)
    return counts[0], counts[1]
