"""Bytes on the wire: process groups that pass every call on to gloo and count what it makes this process send.

What is counted is what the known optimal algorithms send, whatever gloo does in their place: rings for all-reduce,
all-gather and reduce-scatter (Thakur, Rabenseifner and Gropp 2005, section 4), chains for broadcast and reduce, and
for the others each piece once to where it belongs. Groups are `torch.distributed.ProcessGroup`s of a backend of their
own, so that calls by megatron-core, DeepSpeed and torch itself are counted alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from megavideo.parallel.phases import Phases
from megavideo.parallel.processes.distributed import Launch
from megavideo.parallel.processes.mesh import AXES, ProcessMesh
from megavideo.parallel.processes.passing_group import CALLS, Joining, PassingGroup, passing_process_group, tensors_in


@dataclass(frozen=True)
class Sending:
    """What bytes were sent for.

    `ranks` are those of the group, or this process and the receiver of a send; `phase` is `forward`, `backward`, or
    `between` for what an engine does outside both; `shape` is that of the first tensor that this process gave.
    """

    ranks: tuple[int, ...]
    operation: str
    phase: str
    shape: tuple[int, ...]

    def purpose(self, mesh: ProcessMesh) -> str:
        """`tp`, `ulysses`, `ring`, `text`, `pipeline`, `data` (ZeRO's axis, dp x cp) or `model` (axes across these)."""
        places = [mesh.place(rank) for rank in self.ranks]
        axes = {axis for axis in AXES if len({place[axis] for place in places}) > 1}
        if self.operation == "send" and axes in ({"pp"}, {"ring"}):
            return "pipeline" if axes == {"pp"} else "ring"
        if self.operation == "all_to_all" and axes == {"ulysses"}:
            return "ulysses"
        if axes == {"tp"}:
            return "tp"
        # keys and values of the text have heads, where ZeRO's tensors are flat
        if axes <= {"ulysses", "ring"} and self.operation in ("all_gather", "reduce_scatter") and len(self.shape) == 4:
            return "text"
        return "data" if axes <= {"ulysses", "ring", "dp"} else "model"


class Counter:
    """The bytes that this process sent."""

    def __init__(self) -> None:
        self._sent: dict[Sending, float] = {}
        self._phases = Phases()

    def add(self, ranks: Sequence[int], operation: str, shape: Sequence[int], num_bytes: float) -> None:
        """Count bytes, in the phase that the process is in."""
        sending = Sending(tuple(ranks), operation, self._phases.current, tuple(shape))
        self._sent[sending] = self._sent.get(sending, 0.0) + num_bytes

    def start(self, model: nn.Module) -> None:
        """Forget what was counted, and take the calls of `model` as the forward phase from now on."""
        self._sent.clear()
        self._phases.watch(model)

    def sent_bytes(self, mesh: ProcessMesh) -> dict[str, float]:
        """Bytes by `purpose/operation/phase/shape`, as `tp/all_gather/forward/256x512`."""
        found: dict[str, float] = {}
        for sending, num_bytes in self._sent.items():
            shape = "x".join(map(str, sending.shape))
            key = f"{sending.purpose(mesh)}/{sending.operation}/{sending.phase}/{shape}"
            found[key] = found.get(key, 0.0) + num_bytes
        return found


@contextmanager
def counting_process_group() -> Iterator[tuple[Launch, Counter]]:
    """A process group over gloo that counts, with every group made from it; CPU only, always taken down at the end."""
    counter = Counter()
    with passing_process_group("counting", lambda joining: CountingGroup(joining, counter)) as launch:
        yield launch, counter


class CountingGroup(PassingGroup):
    """A process group that counts each call and makes it."""

    def __init__(self, joining: Joining, counter: Counter) -> None:
        super().__init__(joining.gloo, joining.store, joining.ranks)
        self._counter = counter

    def called(self, method: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """Count a call and make it."""
        call, share = CALLS[method], _SHARES.get(method)
        if share is not None and call.given is not None:
            given = tensors_in(arguments[call.given])
            num_bytes = share(arguments, self.rank(), self.size()) * sum(t.nbytes for t in given)
            ranks = (self.ranks[self.rank()], self.ranks[arguments[1]]) if method == "send" else self.ranks
            self._counter.add(ranks, call.operation, given[0].shape if given else (), num_bytes)
        return self.pass_on(method, arguments, options)


# the share of what a process gives that it sends, from the arguments, the rank in the group and its size
_Share = Callable[[Sequence[Any], int, int], float]


def _others(arguments: Sequence[Any], rank: int, size: int) -> float:
    return (size - 1) / size


def _twice_others(arguments: Sequence[Any], rank: int, size: int) -> float:
    return 2 * (size - 1) / size


def _to_each_other(arguments: Sequence[Any], rank: int, size: int) -> float:
    return size - 1


def _unless_root(arguments: Sequence[Any], rank: int, size: int) -> float:
    return float(arguments[-1].rootRank != rank)


def _all(arguments: Sequence[Any], rank: int, size: int) -> float:
    return 1.0


def _all_but_own_split(arguments: Sequence[Any], rank: int, size: int) -> float:
    splits = arguments[3]
    return 1 - splits[rank] / sum(splits) if splits else (size - 1) / size


def _all_but_own_tensor(arguments: Sequence[Any], rank: int, size: int) -> float:
    given = [tensor.nbytes for tensor in arguments[1]]
    return 1 - given[rank] / max(1, sum(given))


# all-gathers send what they give n - 1 times; the calls that are missing send nothing that is worth counting
_SHARES: Mapping[str, _Share] = {
    "broadcast": _others,  # the mean over a chain, whose last rank sends nothing
    "allreduce": _twice_others,
    "allreduce_coalesced": _twice_others,
    "reduce": _unless_root,
    "allgather": _to_each_other,
    "_allgather_base": _to_each_other,
    "allgather_coalesced": _to_each_other,
    "allgather_into_tensor_coalesced": _to_each_other,
    "gather": _unless_root,
    "scatter": _others,
    "reduce_scatter": _others,
    "_reduce_scatter_base": _others,
    "reduce_scatter_tensor_coalesced": _others,
    "alltoall_base": _all_but_own_split,
    "alltoall": _all_but_own_tensor,
    "send": _all,
}
