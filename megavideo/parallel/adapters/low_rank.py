"""The low-rank branch beside a linear layer (LoRA, Hu et al. 2021), whole or shared out as that layer is.

Shape legend: n own tokens, m tokens after the layer, I and O the layer's local input and output features, k equal
matrices stacked in its output (3 for a fused QKV), r rank. Each of the k matrices has an A and a B of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from megavideo.parallel.layers.collectives import sum_gradients
from megavideo.parallel.layers.sharding import mark_sharded

BRANCH = "lora"


@dataclass(frozen=True)
class BranchForm:
    """How the branch of a layer is laid out: its sizes, what is sharded, and where its ranks meet.

    `between` turns A x of this rank's input into what its B needs. `shards` is the matrix of which a rank holds a part,
    "A" by inputs or "B" by outputs. The gradients of those in `partial` come from a share of tokens or heads only, and
    are summed over `tp`.
    """

    in_dim: int
    out_dim: int
    blocks: int = 1
    shards: str = ""
    partial: str = ""
    tp: dist.ProcessGroup | None = None
    between: Callable[[torch.Tensor], torch.Tensor] | None = None


class LowRank(nn.Module):
    """x [n, I] -> scale * B A x [m, O]; A is [k r, I] and B [O, r], block by block."""

    def __init__(self, form: BranchForm, rank: int, scale: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.zeros(form.blocks * rank, form.in_dim))
        self.B = nn.Parameter(torch.zeros(form.out_dim, rank))
        if form.shards == "A":
            mark_sharded(self.A, 1)
        elif form.shards == "B":
            mark_sharded(self.B, 0, form.blocks)
        self._form = form
        self._scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, I] -> [m, O]."""
        form = self._form
        low = F.linear(x, self._whole("A")) * self._scale
        if form.between is not None:
            low = form.between(low)
        if form.blocks == 1:
            return F.linear(low, self._whole("B"))
        up = self._whole("B").unflatten(0, (form.blocks, -1))
        return torch.einsum("nkr,kor->nko", low.unflatten(-1, (form.blocks, -1)), up).flatten(-2)

    def _whole(self, name: str) -> torch.Tensor:
        """A matrix whose gradient will be that of all tokens and heads."""
        matrix: torch.Tensor = getattr(self, name)
        form = self._form
        return sum_gradients(matrix, form.tp) if form.tp is not None and name in form.partial else matrix


def product(down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """What whole matrices A [k r, I] and B [O, r] add to a weight [O, I] at scale 1, float32."""
    blocks = down.shape[0] // up.shape[1]
    pairs = zip(up.float().chunk(blocks), down.float().chunk(blocks), strict=True)
    return torch.cat([b @ a for b, a in pairs])


def attach(layer: nn.Module, form: BranchForm, rank: int, scale: float) -> None:
    """Add a branch to a linear layer, under the name `lora`; the layer's own parameters keep their names."""
    layer.add_module(BRANCH, LowRank(form, rank, scale))
    layer.register_forward_hook(_add_branch)


def _add_branch(layer: nn.Module, inputs: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
    branch: torch.Tensor = layer.get_submodule(BRANCH)(inputs[0])
    return out + branch
