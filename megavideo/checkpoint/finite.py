"""Saved values that are not finite, counted by tensor: no run can be resumed from them, and nothing sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megavideo.border.refused import Refused
from megavideo.border.tensor_file import open_tensors, reading_tensors
from megavideo.checkpoint.manifest import DamagedError, FileEntry

_CHUNK = 1 << 22  # elements looked at together
_NAMED = 5


@dataclass(frozen=True)
class NonFinite:
    """Of one `state` of the parameter `name`, `count` of the `numel` values looked at are NaN or infinite."""

    state: str
    name: str
    count: int
    numel: int

    def __str__(self) -> str:
        return f"{self.state} of {self.name!r} ({self.count} of {self.numel} values)"


class FiniteCount:
    """Values that are not finite, by state and parameter, over all that is added."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], tuple[int, int]] = {}

    def add(self, state: str, name: str, values: torch.Tensor) -> None:
        """Look at values of any shape and floating-point type."""
        count, numel = self._counts.get((state, name), (0, 0))
        self._counts[state, name] = count + count_non_finite(values), numel + values.numel()

    @property
    def found(self) -> tuple[NonFinite, ...]:
        """Tensors that hold such values, in the order in which they were first added."""
        return tuple(NonFinite(*key, *counts) for key, counts in self._counts.items() if counts[0])


def count_non_finite(values: torch.Tensor) -> int:
    """How many values are NaN or infinite. Where none is, that is one pass over them without a copy."""
    if not values.numel():
        return 0
    low, high = (float(bound) for bound in torch.aminmax(values))  # NaN comes through
    return 0 if math.isfinite(low) and math.isfinite(high) else int((~torch.isfinite(values)).sum())


def add_file(count: FiniteCount, path: Path, file: FileEntry) -> None:
    """Add every fragment of a file of tensors, a few MB at a time. Raises DamagedError where it cannot be read."""
    try:
        with open_tensors(path) as tensors, reading_tensors():
            for entry in file.fragments:
                saved = tensors.get_slice(entry.key)
                for begin in range(0, entry.numel, _CHUNK):
                    count.add(entry.state, entry.name, saved[begin : min(begin + _CHUNK, entry.numel)])
    except (Refused, OSError, RuntimeError) as error:
        raise DamagedError(f"{path}: cannot be read ({error}). Remedy: use another checkpoint") from error


def say_non_finite(found: Sequence[NonFinite]) -> str:
    """`2 tensors hold values that are not finite: weight of 'a' (3 of 12 values), ...`; the first few are named."""
    named = ", ".join(str(tensor) for tensor in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{_tensors(len(found))} values that are not finite: {named}{more}"


def _tensors(count: int) -> str:
    return "1 tensor holds" if count == 1 else f"{count} tensors hold"
