"""Activation recomputation: what a block keeps for the backward pass, and what it computes a second time.

Of a recomputed function only its input [n, D] (n own tokens, D width) is kept, on the device or in host memory. What
remains kept can be counted with `saved_bytes`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from megavideo.config.schema.train import RecomputeConfig
from megavideo.model.offload import Offload

WHOLE = "block"


@dataclass(frozen=True)
class BlockRecompute:
    """What one block computes again: `names` holds parts of it, or `WHOLE`. Their inputs wait in `offload`, if any."""

    names: frozenset[str] = frozenset()
    offload: Offload | None = None

    @classmethod
    def of(
        cls, config: RecomputeConfig | None, number: int, layers: int, offload: Offload | None = None
    ) -> BlockRecompute:
        """The share of block `number` (counted over the whole model, whichever stage holds it) of `layers` blocks.

        `offload` is the model's, and taken where `config` asks for one.
        """
        assert offload is not None or config is None or not config.offload, "inputs have no place to wait in"
        if config is None or not config.chooses(number, layers):
            return KEEP_ALL
        return cls(frozenset((WHOLE,) if config.kind == "full" else config.parts), offload if config.offload else None)

    def run(self, name: str, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """function(x); under one of `names`, x alone is kept, and the function runs again in the backward pass.

        What else the function reads is held by reference, so it should be shared with others or small. Contexts such
        as `Layers.precision` must be entered inside the function: those around this call are not there the second time.
        """
        if name not in self.names or not torch.is_grad_enabled():
            return function(x)
        place: AbstractContextManager[object] = nullcontext() if self.offload is None else self.offload.context()
        with place:
            # blocks draw nothing at random, so there is no generator's state to keep
            out: torch.Tensor = checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
        return out


KEEP_ALL = BlockRecompute()


class SavedTensors:
    """Counts, as a context around a forward pass, what autograd keeps on the device for the backward pass.

    Each storage counts once, those of `parameters` and those waiting on the host not at all. Tensors that a recomputed
    function holds by reference count where something else saves them.
    """

    def __init__(self, parameters: Iterable[torch.Tensor] = ()) -> None:
        self._known = {_storage(parameter) for parameter in parameters}
        self._kept: weakref.WeakSet[_Kept] = weakref.WeakSet()
        self._hooks = saved_tensors_hooks(self._keep, lambda kept: kept.tensor)

    def __enter__(self) -> SavedTensors:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    @property
    def num_bytes(self) -> int:
        """Bytes kept now: the peak right after the forward pass, and nothing after the backward pass."""
        sizes = {_storage(kept.tensor): kept.tensor.untyped_storage().nbytes() for kept in self._kept}
        return sum(size for storage, size in sizes.items() if storage not in self._known)

    def _keep(self, tensor: torch.Tensor) -> _Kept:
        kept = _Kept(tensor)
        self._kept.add(kept)
        return kept


def _storage(tensor: torch.Tensor) -> int:
    """What tells a storage from others while it lives, on the meta device too, where none has an address."""
    return int(tensor.untyped_storage()._cdata)


class _Kept:
    """A tensor that lives as long as the part of the graph that saved it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def saved_bytes(run: Callable[[], torch.Tensor], parameters: Iterable[torch.Tensor] = ()) -> int:
    """Bytes that the graph of `run()` keeps for its backward pass, without those of `parameters`.

    For a model: `saved_bytes(lambda: model(batch), model.parameters())`.
    """
    with SavedTensors(parameters) as saved:
        out = run()
    count = saved.num_bytes
    del out  # the graph had to live until here
    return count
