"""A kernel for tests, computed on a CPU, that is worse than any real one in all that the protocol allows.

A mistake in what is given to a kernel, or in what is taken from it, then fails on a CPU and not first on a GPU. For
real rows its numbers are those of the CPU kernel, bit by bit.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch

from megavideo.model.attention.cpu_flash import CpuFlash
from megavideo.model.attention.kernel import Inputs, Lengths

# rows past the last segment that the last tile of a real kernel may read
TILE = 192


class KernelMisused(RuntimeError):
    """A kernel was called with what its protocol excludes: a defect of the caller."""


@dataclass(frozen=True)
class StandIn:
    """The CPU kernel behind checks of everything it is given; it leaves NaN in every row that need not be written."""

    name: ClassVar[str] = "stand_in"

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Lengths, keys: Lengths
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Kernel.attend`. Raises KernelMisused."""
        _check_inputs((query, key, value), queries, keys)
        out, lse = CpuFlash().attend(query, key, value, queries, keys)
        out[queries.total :] = torch.nan
        lse[:, queries.total :] = torch.nan
        return out, lse

    def attend_backward(
        self,
        grad: torch.Tensor,
        inputs: Inputs,
        out: torch.Tensor,
        lse: torch.Tensor,
        queries: Lengths,
        keys: Lengths,
    ) -> Inputs:
        """See `Kernel.attend_backward`. Raises KernelMisused."""
        query = inputs[0]
        _check_inputs(inputs, queries, keys)
        _ask(grad.is_contiguous(), "the output's gradient is contiguous")
        _ask(grad.shape == out.shape == query.shape, "output and gradient have the shape of the query")
        _ask(grad.dtype == out.dtype == query.dtype, "output and gradient have the precision of the query")
        _check_tail("output's gradient", grad, queries.total)
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        _ask(lse.dtype == wide and lse.is_contiguous(), f"the log-sum-exp is {wide} and contiguous")
        _ask(lse.shape == (query.shape[1], query.shape[0]), "the log-sum-exp is [heads, queries]")
        grads = CpuFlash().attend_backward(grad, inputs, out, lse, queries, keys)
        for tensor, total in zip(grads, (queries.total, keys.total, keys.total), strict=True):
            tensor[total:] = torch.nan
        return grads


def _check_inputs(inputs: Inputs, queries: Lengths, keys: Lengths) -> None:
    query, key, value = inputs
    _ask(all(t.ndim == 3 and t.stride(-1) == 1 for t in inputs), "inputs are [tokens, heads, width], width contiguous")
    _ask(query.dtype == key.dtype == value.dtype, "inputs have one precision")
    _ask(query.shape[1:] == key.shape[1:] and key.shape == value.shape, "inputs have the same heads, of one width")
    _ask(queries.cu_seqlens.shape == keys.cu_seqlens.shape, "there are as many segments of queries as of keys")
    for name, tensor, lengths in (("query", query, queries), ("key", key, keys), ("value", value, keys)):
        _check_lengths(name, lengths, tensor.shape[0])
        _check_tail(name, tensor, lengths.total)


def _check_lengths(name: str, lengths: Lengths, num_rows: int) -> None:
    cu_seqlens = lengths.cu_seqlens
    _ask(cu_seqlens.dtype == torch.int32, f"cu_seqlens of the {name} are int32, not {cu_seqlens.dtype}")
    _ask(cu_seqlens.ndim == 1 and cu_seqlens.is_contiguous(), f"cu_seqlens of the {name} are one contiguous row")
    bounds = cu_seqlens.tolist()
    sizes = [end - begin for begin, end in itertools.pairwise(bounds)]
    _ask(bounds[0] == 0 and min(sizes) >= 0, f"segments of the {name} begin at 0 and follow each other")
    _ask(bounds[-1] <= num_rows, f"segments of the {name} end at {bounds[-1]}, of {num_rows} rows")
    _ask(lengths.total == bounds[-1] > 0, f"the {name} has {bounds[-1]} tokens of segments, not {lengths.total}")
    _ask(lengths.longest == max(sizes), f"the longest segment of the {name} has {max(sizes)}, not {lengths.longest}")


def _check_tail(name: str, tensor: torch.Tensor, total: int) -> None:
    finite = bool(tensor[total : total + TILE].isfinite().all())
    _ask(finite, f"rows of the {name} past the last segment, which a kernel's last tile may read, are finite")


def _ask(holds: bool, rule: str) -> None:
    if not holds:
        raise KernelMisused(f"attention kernel misused, against the rule: {rule}")
