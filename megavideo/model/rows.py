"""The map from tokens to the rows of a small conditioning table, and the two operations that adaLN needs of it.

Shape legend: N tokens, R rows, D width. Where the host knows the map (CPU), neighbouring tokens of one row are
treated as a run with a broadcast; else rows are gathered and summed by an index and a one-hot product, which is
deterministic and never waits for the device.
"""

from __future__ import annotations

import itertools

import torch

_MIN_RUN_TOKENS = 16  # below this mean length, a loop over runs costs more than a gather


class Rows:
    """Token-to-row map [N] of a table with `num_rows` rows."""

    def __init__(self, row: torch.Tensor, num_rows: int, dtype: torch.dtype) -> None:
        self.row = row
        self.num_rows = num_rows
        self.dtype = dtype
        self.runs = _runs(row) if row.device.type == "cpu" else ()
        self._one_hot: torch.Tensor | None = None

    def affine(self, bias: torch.Tensor, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """bias[row] + x * scale[row]: x [N, D]; scale and bias [R, D]."""
        if not self.runs:
            return torch.addcmul(bias[self.row], x, scale[self.row])
        out = torch.empty_like(x)
        for begin, end, row in self.runs:
            torch.addcmul(bias[row], x[begin:end], scale[row], out=out[begin:end])
        return out

    def gated_add(self, x: torch.Tensor, branch: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """x + branch * gate[row]: x and branch [N, D]; gate [R, D]."""
        if not self.runs:
            return torch.addcmul(x, branch, gate[self.row])
        out = torch.empty_like(x)
        for begin, end, row in self.runs:
            torch.addcmul(x[begin:end], branch[begin:end], gate[row], out=out[begin:end])
        return out

    def scale(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """x * scale[row]."""
        if not self.runs:
            return x * scale[self.row]
        out = torch.empty_like(x)
        for begin, end, row in self.runs:
            torch.mul(x[begin:end], scale[row], out=out[begin:end])
        return out

    def gather_sum(self, x: torch.Tensor) -> torch.Tensor:
        """Sum of each row's tokens: [N, D] -> [R, D]."""
        if self.runs:
            out = x.new_zeros(self.num_rows, x.shape[1])
            for begin, end, row in self.runs:
                out[row] += x[begin:end].sum(0)
            return out
        if self._one_hot is None:
            self._one_hot = torch.zeros(self.num_rows, self.row.shape[0], dtype=self.dtype, device=self.row.device)
            self._one_hot.scatter_(0, self.row[None], 1)
        return self._one_hot @ x


def _runs(row: torch.Tensor) -> tuple[tuple[int, int, int], ...]:
    """(begin, end, row) of each run of equal rows; empty where the runs are too short to be worth a loop."""
    values, counts = torch.unique_consecutive(row, return_counts=True)
    if len(values) * _MIN_RUN_TOKENS > row.shape[0]:
        return ()
    ends = list(itertools.accumulate(counts.tolist()))
    return tuple(zip([0, *ends[:-1]], ends, values.tolist(), strict=True))
