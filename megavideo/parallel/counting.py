"""Bytes on the wire: process groups that pass every call on to gloo and count what it makes this process send.

What is counted is what the known optimal algorithms send, whatever gloo does in their place: rings for all-reduce,
all-gather and reduce-scatter (Thakur, Rabenseifner and Gropp 2005, section 4), chains for broadcast and reduce, and
for the others each piece once to where it belongs. Groups are `torch.distributed.ProcessGroup`s of a backend of their
own, so that calls by megatron-core, DeepSpeed and torch itself are counted alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from megavideo.parallel.processes.distributed import Launch, read_launch
from megavideo.parallel.processes.mesh import AXES, ProcessMesh

_BACKEND = "counting"
_TIMEOUT = timedelta(minutes=10)


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
        """`tp`, `ulysses`, `ring`, `pipeline`, `data` (ZeRO's axis, dp x cp) or `model` (axes across these)."""
        places = [mesh.place(rank) for rank in self.ranks]
        axes = {axis for axis in AXES if len({place[axis] for place in places}) > 1}
        if self.operation == "send" and axes in ({"pp"}, {"ring"}):
            return "pipeline" if axes == {"pp"} else "ring"
        if self.operation == "all_to_all" and axes == {"ulysses"}:
            return "ulysses"
        if axes == {"tp"}:
            return "tp"
        return "data" if axes <= {"ulysses", "ring", "dp"} else "model"


class Counter:
    """The bytes that this process sent."""

    def __init__(self) -> None:
        self._sent: dict[Sending, float] = {}
        self._in_forward = False

    def add(self, ranks: Sequence[int], operation: str, shape: Sequence[int], num_bytes: float) -> None:
        """Count bytes, in the phase that the process is in."""
        # recomputation, and what engines hang on gradients, run inside autograd's task
        in_backward = torch._C._current_graph_task_id() != -1
        phase = "backward" if in_backward else "forward" if self._in_forward else "between"
        sending = Sending(tuple(ranks), operation, phase, tuple(shape))
        self._sent[sending] = self._sent.get(sending, 0.0) + num_bytes

    def start(self, model: nn.Module) -> None:
        """Forget what was counted, and take the calls of `model` as the forward phase from now on."""
        self._sent.clear()
        model.register_forward_pre_hook(lambda *_: self._set_forward(True), prepend=True)
        model.register_forward_hook(lambda *_: self._set_forward(False))

    def sent_bytes(self, mesh: ProcessMesh) -> dict[str, float]:
        """Bytes by `purpose/operation/phase/shape`, as `tp/all_gather/forward/256x512`."""
        found: dict[str, float] = {}
        for sending, num_bytes in self._sent.items():
            shape = "x".join(map(str, sending.shape))
            key = f"{sending.purpose(mesh)}/{sending.operation}/{sending.phase}/{shape}"
            found[key] = found.get(key, 0.0) + num_bytes
        return found

    def _set_forward(self, value: bool) -> None:
        self._in_forward = value


@contextmanager
def counting_process_group() -> Iterator[tuple[Launch, Counter]]:
    """A process group over gloo that counts, with every group made from it; CPU only, always taken down at the end."""
    rank, local_rank, world_size = read_launch(os.environ)
    counter = Counter()

    def build(options: Any, unused: Any) -> CountingGroup:
        ranks = tuple(options.global_ranks_in_group) or tuple(range(world_size))
        gloo = dist.ProcessGroupGloo(options.store, options.group_rank, options.group_size, options.timeout)
        return CountingGroup(gloo, options.store, ranks, counter)

    dist.Backend.register_backend(_BACKEND, build, extended_api=True, devices=["cpu"])
    dist.init_process_group(_BACKEND, timeout=_TIMEOUT)
    try:
        yield Launch(rank, local_rank, world_size, torch.device("cpu")), counter
    finally:
        dist.destroy_process_group()


class CountingGroup(dist.ProcessGroup):
    """A process group of global `ranks` that counts each call and hands it to a plain group of gloo.

    It has the calls of `_CALLS` and no backend of its own, so that a call which is missing there fails.
    """

    def __init__(
        self, gloo: dist.ProcessGroupGloo, store: dist.Store, ranks: tuple[int, ...], counter: Counter
    ) -> None:
        # the constructor for Python's subclasses, which torch's stub leaves out
        super().__init__(gloo.rank(), gloo.size())  # type: ignore[call-arg, arg-type]
        self._ranks = ranks
        self._counter = counter
        # a whole group around the backend: torch's own, whose calls take the same arguments as this one's
        self._group = dist.ProcessGroup(store, gloo.rank(), gloo.size())
        self._group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
        self._group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)

    def _set_group_name(self, name: Any) -> None:
        self._group._set_group_name(name)

    @property
    def group_name(self) -> Any:
        """The name under which torch's C++ knows the group; torch keeps it at the backend."""
        return self._group.group_name

    def pass_on(self, method: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """Count a call and make it."""
        call = _CALLS[method]
        if call is not None:
            given = _tensors(arguments[call.given])
            num_bytes = call.share(arguments, self.rank(), self.size()) * sum(t.nbytes for t in given)
            ranks = (self._ranks[self.rank()], self._ranks[arguments[1]]) if method == "send" else self._ranks
            self._counter.add(ranks, call.operation, given[0].shape if given else (), num_bytes)
        return getattr(self._group, method)(*arguments, **options)


@dataclass(frozen=True)
class _Call:
    """A method of a group: which argument holds what this process gives, and what share of it is sent.

    `share` is asked with the arguments, the rank in the group and its size; all-gathers send what they give n - 1
    times.
    """

    operation: str
    given: int
    share: Callable[[Sequence[Any], int, int], float]


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


# methods by which `torch.distributed` calls a group; None sends nothing that is worth counting
_CALLS: Mapping[str, _Call | None] = {
    "broadcast": _Call("broadcast", 0, _others),  # the mean over a chain, whose last rank sends nothing
    "allreduce": _Call("all_reduce", 0, _twice_others),
    "allreduce_coalesced": _Call("all_reduce", 0, _twice_others),
    "reduce": _Call("reduce", 0, _unless_root),
    "allgather": _Call("all_gather", 1, _to_each_other),
    "_allgather_base": _Call("all_gather", 1, _to_each_other),
    "allgather_coalesced": _Call("all_gather", 1, _to_each_other),
    "allgather_into_tensor_coalesced": _Call("all_gather", 1, _to_each_other),
    "gather": _Call("gather", 1, _unless_root),
    "scatter": _Call("scatter", 1, _others),
    "reduce_scatter": _Call("reduce_scatter", 1, _others),
    "_reduce_scatter_base": _Call("reduce_scatter", 1, _others),
    "reduce_scatter_tensor_coalesced": _Call("reduce_scatter", 1, _others),
    "alltoall_base": _Call("all_to_all", 1, _all_but_own_split),
    "alltoall": _Call("all_to_all", 1, _all_but_own_tensor),
    "send": _Call("send", 0, _all),
    "recv": None,
    "recv_anysource": None,
    "barrier": None,
}


def _method(name: str) -> Callable[..., Any]:
    def method(self: CountingGroup, *arguments: Any, **options: Any) -> Any:
        return self.pass_on(name, arguments, options)

    return method


# torch looks methods up by name, also from C++
for _name in _CALLS:
    setattr(CountingGroup, _name, _method(_name))


def _tensors(given: Any) -> list[torch.Tensor]:
    """The tensors of an argument: one, a list, or a list of lists."""
    if isinstance(given, torch.Tensor):
        return [given]
    return [tensor for part in given for tensor in _tensors(part)]
