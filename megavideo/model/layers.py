"""What a model asks of its layers, and the answer of a single process.

The model never learns that it is parallel: it is built from a `Layers` value. `LocalLayers` is plain torch and the
numeric oracle of every other set.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from megavideo.model.attention import Segments, attend_varlen


class Layers(Protocol):
    """Builders of sharded layers and the operations that may communicate.

    A column layer splits its output features, a row layer its input features. `blocks` says how many equal matrices
    are stacked in the output (3 for a fused QKV), each of which is split by itself.
    """

    def column(self, in_dim: int, out_dim: int, *, blocks: int = 1) -> nn.Module:
        """Linear layer [N, in_dim] -> [N, out_dim / tp], with bias."""
        ...

    def row(self, in_dim: int, out_dim: int) -> nn.Module:
        """Linear layer [N, in_dim / tp] -> [N, out_dim], summed over the shards, with bias."""
        ...

    def replicated(self, in_dim: int, out_dim: int) -> nn.Module:
        """Linear layer [N, in_dim] -> [N, out_dim] held whole on every rank, with bias."""
        ...

    def rms_norm(self, width: int, eps: float) -> nn.Module:
        """RMS norm over the whole (unsharded) width, with a weight."""
        ...

    def local_heads(self, heads: int) -> int:
        """Heads that this rank computes."""
        ...

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Segments, keys: Segments
    ) -> torch.Tensor:
        """Attention within segments: query [N, A, hd], key and value [M, A, hd] -> [N, A, hd]."""
        ...

    def enter(self, tokens: torch.Tensor) -> torch.Tensor:
        """Whole pack [N, ...] to this rank's tokens."""
        ...

    def leave(self, tokens: torch.Tensor) -> torch.Tensor:
        """This rank's tokens to the whole pack [N, ...]."""
        ...


class LocalLayers:
    """Plain torch layers of one process."""

    def column(self, in_dim: int, out_dim: int, *, blocks: int = 1) -> nn.Module:
        """Linear layer; `blocks` changes nothing where nothing is split."""
        del blocks
        return nn.Linear(in_dim, out_dim)

    def row(self, in_dim: int, out_dim: int) -> nn.Module:
        """Linear layer."""
        return nn.Linear(in_dim, out_dim)

    def replicated(self, in_dim: int, out_dim: int) -> nn.Module:
        """Linear layer."""
        return nn.Linear(in_dim, out_dim)

    def rms_norm(self, width: int, eps: float) -> nn.Module:
        """torch's RMS norm."""
        return nn.RMSNorm(width, eps=eps)

    def local_heads(self, heads: int) -> int:
        """All heads."""
        return heads

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Segments, keys: Segments
    ) -> torch.Tensor:
        """Attention by the local varlen kernel."""
        return attend_varlen(query, key, value, queries, keys)[0]

    def enter(self, tokens: torch.Tensor) -> torch.Tensor:
        """The pack itself."""
        return tokens

    def leave(self, tokens: torch.Tensor) -> torch.Tensor:
        """The pack itself."""
        return tokens
