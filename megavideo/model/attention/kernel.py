"""What an attention kernel must do. `Attention` makes a differentiable operator of it.

Shape legend: N query tokens, M key tokens, K segments, A heads, h head width.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

import torch

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Lengths:
    """Lengths of the segments of one axis, as kernels take them.

    cu_seqlens [K+1] int32 on the device; `total` tokens belong to a segment and `longest` is the longest segment, both
    known on the host and exact.
    """

    cu_seqlens: torch.Tensor
    total: int
    longest: int


class Kernel(Hashable, Protocol):
    """Softmax attention, unmasked, of each query segment over the key segment of the same number.

    Kernels of one name are equal, since its operators are defined once in a process.

    Scores are scaled by h ** -0.5. A kernel is called with at least one query and one key that belong to a segment.
    It may leave rows past `total` of what it returns unwritten, since `Attention` fills them; it may read such rows of
    its inputs, which hold finite numbers, and their values must not matter. Single segments may be empty on either
    side: queries without keys have output 0, log-sum-exp -inf and gradient 0, and keys without queries gradient 0.
    """

    @property
    def name(self) -> str:
        """The name by which settings choose it; a Python identifier."""
        ...

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Lengths, keys: Lengths
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """query [N, A, h], key and value [M, A, h], last dim contiguous -> new output [N, A, h] and log-sum-exp.

        The log-sum-exp [A, N] is natural, contiguous, and in float32 (float64 for float64 input).
        """
        ...

    def attend_backward(
        self,
        grad: torch.Tensor,
        inputs: Inputs,
        out: torch.Tensor,
        lse: torch.Tensor,
        queries: Lengths,
        keys: Lengths,
    ) -> Inputs:
        """New gradients of query, key and value (`inputs`), where that of the output is `grad` [N, A, h], contiguous.

        `out` and `lse` may come from more keys than are given: then these are the given keys' share of the gradients.
        """
        ...
