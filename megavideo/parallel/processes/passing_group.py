"""Process groups over gloo that are told of every call before gloo is, whoever makes it.

They are `torch.distributed.ProcessGroup`s of a backend of their own, so that calls by megatron-core, DeepSpeed, torch's
Python and torch's C++ come to them alike. What becomes of a call is for a subclass to say.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist

from megavideo.parallel.processes.distributed import Launch, read_launch

_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Call:
    """A method of a group: which argument holds the tensors that a process gives, and which those that it gets.

    Where both are the same argument, `shared` says who of a call with a root does what: `from_root`, the root gives and
    the others get; `to_root`, all give and the root gets.
    """

    operation: str
    given: int | None
    taken: int | None
    shared: Literal["no", "from_root", "to_root"] = "no"

    def inputs(self, arguments: Sequence[Any], rank: int) -> list[torch.Tensor]:
        """The tensors that the process gives which has `rank` in the group."""
        if self.given is None or (self.shared == "from_root" and arguments[-1].rootRank != rank):
            return []
        return tensors_in(arguments[self.given])

    def outputs(self, arguments: Sequence[Any], rank: int) -> list[torch.Tensor]:
        """The tensors that it gets."""
        if self.taken is None or (
            self.shared != "no" and (arguments[-1].rootRank == rank) == (self.shared == "from_root")
        ):
            return []
        return tensors_in(arguments[self.taken])


# methods by which `torch.distributed` calls a group
CALLS: Mapping[str, Call] = {
    "broadcast": Call("broadcast", 0, 0, "from_root"),
    "allreduce": Call("all_reduce", 0, 0),
    "allreduce_coalesced": Call("all_reduce", 0, 0),
    "reduce": Call("reduce", 0, 0, "to_root"),
    "allgather": Call("all_gather", 1, 0),
    "_allgather_base": Call("all_gather", 1, 0),
    "allgather_coalesced": Call("all_gather", 1, 0),
    "allgather_into_tensor_coalesced": Call("all_gather", 1, 0),
    "gather": Call("gather", 1, 0),
    "scatter": Call("scatter", 1, 0),
    "reduce_scatter": Call("reduce_scatter", 1, 0),
    "_reduce_scatter_base": Call("reduce_scatter", 1, 0),
    "reduce_scatter_tensor_coalesced": Call("reduce_scatter", 1, 0),
    "alltoall_base": Call("all_to_all", 1, 0),
    "alltoall": Call("all_to_all", 1, 0),
    "send": Call("send", 0, None),
    "recv": Call("recv", None, 0),
    "recv_anysource": Call("recv", None, 0),
    "barrier": Call("barrier", None, None),
}


def tensors_in(given: Any) -> list[torch.Tensor]:
    """The tensors of an argument: one, a list, or a list of lists."""
    if isinstance(given, torch.Tensor):
        return [given]
    return [tensor for part in given for tensor in tensors_in(part)]


class PassingGroup(dist.ProcessGroup):
    """A process group of global `ranks` whose calls come to `called`, which may `pass_on` to a plain group of gloo.

    It has the calls of `CALLS` and no backend of its own, so that a call which is missing there fails.
    """

    def __init__(self, gloo: dist.ProcessGroupGloo, store: dist.Store, ranks: tuple[int, ...]) -> None:
        # the constructor for Python's subclasses, which torch's stub leaves out
        super().__init__(gloo.rank(), gloo.size())  # type: ignore[call-arg, arg-type]
        self.ranks = ranks
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

    @abstractmethod
    def called(self, method: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """Meet a call, and return its work."""

    def pass_on(self, method: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """Make the call, and return gloo's work."""
        return getattr(self._group, method)(*arguments, **options)


def _method(name: str) -> Callable[..., Any]:
    def method(self: PassingGroup, *arguments: Any, **options: Any) -> Any:
        return self.called(name, arguments, options)

    return method


# torch looks methods up by name, also from C++
for _name in CALLS:
    setattr(PassingGroup, _name, _method(_name))


@dataclass(frozen=True)
class Joining:
    """What a group is made from: gloo's own, the store in which its ranks meet, their global ranks, and its name."""

    gloo: dist.ProcessGroupGloo
    store: dist.Store
    ranks: tuple[int, ...]
    name: str


@contextmanager
def passing_process_group(backend: str, build: Callable[[Joining], PassingGroup]) -> Iterator[Launch]:
    """A process group that `build` makes, with every group made from it; CPU only, always taken down at the end.

    `backend` is the name under which torch knows them: one use in the life of a process.
    """
    rank, local_rank, world_size = read_launch(os.environ)

    def make(options: Any, unused: Any) -> PassingGroup:
        ranks = tuple(options.global_ranks_in_group) or tuple(range(world_size))
        gloo = dist.ProcessGroupGloo(options.store, options.group_rank, options.group_size, options.timeout)
        return build(Joining(gloo, options.store, ranks, options.group_id))

    dist.Backend.register_backend(backend, make, extended_api=True, devices=["cpu"])
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield Launch(rank, local_rank, world_size, torch.device("cpu"))
    finally:
        dist.destroy_process_group()
