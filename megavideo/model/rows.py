"""The map from tokens to the rows of a small conditioning table, and the operations that adaLN needs of it.

Rows are gathered by an index, and summed by a one-hot product, which is deterministic and never waits for the device.

Shape legend: N tokens, R rows, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rows:
    """Token-to-row map of a table: row [N] int64, and the same as a one-hot matrix [R, N] in the model's precision."""

    row: torch.Tensor
    one_hot: torch.Tensor

    @classmethod
    def of(cls, row: torch.Tensor, num_rows: int, dtype: torch.dtype) -> Rows:
        """The map `row` [N] of a table with `num_rows` rows."""
        one_hot = torch.zeros(num_rows, row.shape[0], dtype=dtype, device=row.device)
        return cls(row, one_hot.scatter_(0, row[None], 1))

    def affine(self, bias: torch.Tensor, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """bias[row] + x * scale[row]: x [N, D]; scale and bias [R, D]."""
        return torch.addcmul(bias.index_select(0, self.row), x, scale.index_select(0, self.row))

    def gated_add(self, x: torch.Tensor, branch: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """x + branch * gate[row]: x and branch [N, D]; gate [R, D]."""
        return torch.addcmul(x, branch, gate.index_select(0, self.row))

    def scale(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """x * scale[row]."""
        return x * scale.index_select(0, self.row)

    def gather_sum(self, x: torch.Tensor) -> torch.Tensor:
        """Sum of each row's tokens: [N, D] -> [R, D]."""
        return self.one_hot @ x
