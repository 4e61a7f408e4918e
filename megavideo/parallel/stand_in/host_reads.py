"""Reads of a tensor's values by the host, for which a GPU's host waits until the device has done all it was given.

They are counted by phase and place, and can be forbidden in the forward and backward pass, where the device would run
dry. Counted is what waits on a GPU, whatever it costs here: `item` and what rests on it, `tolist`, `numpy` and `cpu`,
operations whose result has a shape by values, and `equal`. What a custom operator does inside is its own affair.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from megavideo.parallel.phases import Phase, Phases

_TORCH = str(Path(torch.__file__).parent)
_CHECKOUT = str(Path(__file__).parents[3])

# operations by their names in aten, whatever the overload
_READS: Mapping[str, str] = {
    "_local_scalar_dense": "item",  # also bool, float, int, and a tensor as an index of a list
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "_unique": "unique",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "unique_dim_consecutive": "unique",
    "equal": "equal",
    "allclose": "allclose",
    "bincount": "bincount",
}
# with a mask, of which the positions must be found
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")
# files whose reads are never errors: ZeRO-3 compares the ranks' orders of modules in its first two forward passes
_TOLERATED = ("deepspeed/runtime/zero/utils.py",)
# of a tensor that lies in host memory, these go past torch's dispatcher
_METHODS = ("tolist", "numpy", "__array__", "cpu")


class HostReadInPass(RuntimeError):
    """A read of a tensor's values by the host in a forward or backward pass; says which and where."""


class HostReads:
    """What the thread reads that has entered it; with `forbid`, a read in a pass raises HostReadInPass."""

    def __init__(self, forbid: bool) -> None:
        self._forbid = forbid
        self._phases = Phases()
        self._counts: Counter[str] = Counter()
        self._within = ExitStack()
        self._thread = 0
        self._inside = 0  # depth of operations that have been looked at

    def start(self, model: nn.Module) -> None:
        """Forget what was counted, and take the calls of `model` as the forward phase from now on."""
        self._counts.clear()
        self._phases.watch(model)

    def counts(self) -> dict[str, int]:
        """Reads by `phase/operation/file:line`, as `between/item/megavideo/train/step.py:81`.

        The line is that of the innermost call outside torch, its file is named from the directory of its package.
        """
        return dict(self._counts)

    def forbids(self, phase: Phase, operation: str, place: str) -> bool:
        """Whether a read is an error."""
        return self._forbid and phase != "between" and not place.startswith(_TOLERATED)

    def __enter__(self) -> HostReads:
        self._thread = threading.get_ident()
        with ExitStack() as stack:
            stack.enter_context(_Dispatched(self))
            for name in _METHODS:
                stack.enter_context(self._patched(name))
            self._within = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._within.close()

    def call(self, operation: str | None, function: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> Any:
        """Call what reads values by an operation (None: it reads none), and look at nothing that it does inside."""
        if operation is not None and not self._inside:
            self._met(operation)
        self._inside += 1
        try:
            return function(*args, **kwargs)
        finally:
            self._inside -= 1

    def _met(self, operation: str) -> None:
        """Count a read, or raise."""
        phase, place = self._phases.current, _place()
        if self.forbids(phase, operation, place):
            raise HostReadInPass(
                f"{operation} at {place}, in the {phase} pass, reads a tensor's values: on a GPU the host waits there "
                "until the device has done all that it was given. Take what the host knows, or leave it on the device"
            )
        self._counts[f"{phase}/{operation}/{place}"] += 1

    def _patched(self, name: str) -> AbstractContextManager[Any]:
        original: Callable[..., Any] = getattr(torch.Tensor, name)
        operation = "numpy" if name == "__array__" else name

        def method(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self._thread:
                return original(*args, **kwargs)
            return self.call(operation, original, args, kwargs)

        return patch.object(torch.Tensor, name, method)


class _Dispatched(TorchDispatchMode):
    """Sees each operation that goes through torch's dispatcher, but not those that it is made of."""

    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return self._reads.call(_read_by(func, args, kwargs), func, args, kwargs)


def _read_by(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """What reads values in an operation; None where nothing does."""
    if func.namespace != "aten":
        return None
    name = func.overloadpacket.__name__
    if name in _READS:
        return _READS[name]
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        return name
    if name in _INDEXED and any(_is_mask(index) for index in args[1]):
        return name.strip("_").removesuffix("_impl")
    return None


def _is_mask(index: torch.Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _place() -> str:
    """File and line of the innermost call that is neither torch's nor in this file."""
    frame: Any = sys._getframe(1)
    while frame.f_back is not None and (frame.f_code.co_filename.startswith(_TORCH) or _is_here(frame)):
        frame = frame.f_back
    path = frame.f_code.co_filename
    # installed packages may lie inside the checkout
    for directory in (str(Path(_TORCH).parent), _CHECKOUT):
        path = path.removeprefix(f"{directory}/")
    return f"{path}:{frame.f_lineno}"


def _is_here(frame: Any) -> bool:
    return bool(frame.f_code.co_filename == __file__)
