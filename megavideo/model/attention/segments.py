"""Where the segments of a packed axis begin and end, on the device and on the host.

Shape legend: K segments.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Segments:
    """The segments of a packed axis, whose tokens past the last one belong to none.

    cu_seqlens [K+1] int32, from zero, on the device, for kernels; `bounds` holds the same numbers on the host, where
    they come from: nothing that depends on a pack's lengths asks the device for them. `extent` [2] int64 is on the host
    too: the tokens that belong to a segment, and the longest segment. It is a tensor, and so an input of compiled code,
    which therefore serves packs of all lengths.
    """

    cu_seqlens: torch.Tensor
    bounds: tuple[int, ...]
    extent: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        longest = max((end - begin for begin, end in itertools.pairwise(self.bounds)), default=0)
        object.__setattr__(self, "extent", torch.tensor([self.bounds[-1], longest], device="cpu"))

    @classmethod
    def of(cls, bounds: Sequence[int], device: torch.device | str = "cpu") -> Segments:
        """Segments with these bounds; a copy to a GPU from here would be one that waits."""
        return cls(torch.tensor(bounds, dtype=torch.int32, device=device), tuple(bounds))

    def clipped(self, begin: int, end: int) -> Segments:
        """The parts of the segments in the run [begin, end) of the axis, counted from its start."""
        bounds = tuple(min(max(bound, begin), end) - begin for bound in self.bounds)
        return Segments(self.cu_seqlens.clamp(begin, end) - begin, bounds)
