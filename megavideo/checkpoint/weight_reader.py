"""Weights that a model is filled from, whatever holds them: ranges of parameters, read by each rank for itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch

from megavideo.checkpoint.finite import FiniteCount, NonFinite, say_non_finite
from megavideo.checkpoint.manifest import BaseReference, DamagedError
from megavideo.errors import CheckpointError
from megavideo.optim.adamw import EMA
from megavideo.parallel.engines.fragments import WEIGHT, Fragment
from megavideo.parallel.layers.sharding import Shard


class WeightReader(ABC):
    """Ranges of states of a model's parameters, named and cut as this package's own.

    `place` names the folder or file in messages. Values that are not finite are counted as they are read; whoever
    computes with them calls `check_finite`.
    """

    other_place: ClassVar[str]
    """What is to be taken in place of weights that are not finite."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._count = FiniteCount()

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Whole shapes of the parameters."""

    @property
    @abstractmethod
    def states(self) -> set[str]:
        """Names of the states that are held, `weight` among them."""

    @property
    def base(self) -> BaseReference | None:
        """The checkpoint for whose weights the adapters held here were trained; None for whole weights."""
        return None

    @abstractmethod
    def _read(self, state: str, name: str, shard: Shard, start: int, numel: int) -> torch.Tensor:
        """As `read`, in any floating-point type and not counted."""

    def read(self, state: str, name: str, shard: Shard, start: int, numel: int) -> torch.Tensor:
        """Elements [start, start + numel) of one state of a flattened shard of a parameter, float32 on the CPU."""
        out = self._read(state, name, shard, start, numel).float()
        self._count.add(state, name, out)
        return out

    @property
    def non_finite(self) -> tuple[NonFinite, ...]:
        """Tensors of which values that are not finite were read so far."""
        return self._count.found

    def check_finite(self) -> None:
        """Raise DamagedError, which names the tensors, where anything that was read is not finite."""
        if self.non_finite:
            raise DamagedError(f"{self.place}: {say_non_finite(self.non_finite)}. Remedy: {self.other_place}")

    def fill_weights(self, fragment: Fragment) -> None:
        """Put the saved weight and average, where none was saved the weight, into live states as before any update."""
        self._check(fragment.name, fragment.shape)
        saved_as = {WEIGHT: WEIGHT, EMA: EMA if EMA in self.states else WEIGHT}
        for state, values in fragment.states.items():
            if state in saved_as:
                given = self.read(saved_as[state], fragment.name, fragment.shard, fragment.start, fragment.numel)
                values.copy_(given)
            else:
                values.zero_()
        fragment.steps.zero_()

    def fill_parameters(self, parameters: Iterable[tuple[str, torch.Tensor, Shard]]) -> None:
        """Put the saved weights into the parts of parameters that a rank holds, in their own precision.

        They are not counted: each value is in the fragment of one rank as well, whose states are filled beside.
        Raises CheckpointError where one of them is not held, or of another whole shape.
        """
        with torch.no_grad():
            for name, parameter, shard in parameters:
                self._check(name, shard.whole_shape(parameter.shape))
                parameter.copy_(self._read(WEIGHT, name, shard, 0, parameter.numel()).view(parameter.shape))

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        saved = self.shapes.get(name)
        if saved != shape:
            raise CheckpointError(
                f"{self.place}: made for another model: parameter {name!r} is {saved} in the checkpoint, {shape} in "
                "this run. Remedy: use the run's own model settings"
            )
