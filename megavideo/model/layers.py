"""What a model asks of its layers, and the answer of a single process.

The model never learns that it is parallel: it is built from a `Layers` value. `LocalLayers` is plain torch and the
numeric oracle of every other set.

Two axes may be shared out. Tokens: a rank holds its *own* tokens in the residual stream, and *attended* ones, possibly
more, between a column layer and the row layer after it. Heads: a rank computes some of them. A tensor that all ranks
hold alike but each applies only to its share has a partial gradient on each, which `over_tokens` and `over_heads` sum.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from megavideo.device.copies import DeviceCopies
from megavideo.device.cpu_copies import CpuCopies
from megavideo.model.attention.cpu_flash import CPU_FLASH
from megavideo.model.attention.operator import Attention
from megavideo.model.attention.segments import Segments


@dataclass(frozen=True)
class AttentionPlan:
    """Who attends to whom in one pack; made once for all blocks, by `Layers.plan_attention`, and given back to them.

    `video` has the segments among which a kernel call attends itself, `queries` those of the attended tokens, which
    attend to `text`.
    """

    video: Segments
    queries: Segments
    text: Segments


class Layers(Protocol):
    """Builders of sharded layers and the operations that may communicate.

    A column layer splits its output features, a row layer its input features. `blocks` says how many equal matrices
    are stacked in the output (3 for a fused QKV), each of which is split by itself.
    """

    copies: DeviceCopies
    """Brings to host memory and back what a model keeps there for its backward pass."""

    def column(self, in_dim: int, out_dim: int, *, blocks: int = 1) -> nn.Module:
        """Linear layer with bias: own tokens [n, in_dim] -> attended tokens [m, out_dim / tp]."""
        ...

    def column_of_whole(self, in_dim: int, out_dim: int, *, blocks: int = 1) -> nn.Module:
        """Column layer with bias on what all tp ranks hold alike and passed through `over_heads`, as the text."""
        ...

    def row(self, in_dim: int, out_dim: int) -> nn.Module:
        """Linear layer with bias, summed over the shards: attended tokens [m, in_dim / tp] -> own [n, out_dim]."""
        ...

    def replicated(self, in_dim: int, out_dim: int) -> nn.Module:
        """Linear layer held whole, with bias, for what every rank holds whole."""
        ...

    def per_token(self, in_dim: int, out_dim: int) -> nn.Module:
        """Linear layer held whole, with bias, for a rank's own tokens."""
        ...

    def layer_norm(self, width: int, eps: float) -> nn.Module:
        """LayerNorm of own tokens, with weight and bias."""
        ...

    def rms_norm(self, width: int, eps: float) -> nn.Module:
        """RMS norm over the whole (unsharded) width of attended tokens, with a weight."""
        ...

    def local_heads(self, heads: int) -> int:
        """Heads that this rank computes between a column and a row layer."""
        ...

    def own(self, tokens: torch.Tensor) -> torch.Tensor:
        """Whole pack [N, ...] to this rank's own tokens [n, ...]."""
        ...

    def attended(self, tokens: torch.Tensor) -> torch.Tensor:
        """Whole pack [N, ...] to this rank's attended tokens [m, ...]."""
        ...

    def own_text(self, text: torch.Tensor) -> torch.Tensor:
        """The whole text [M, ...] to this rank's share of it [l, ...]; shares past the end hold zeros."""
        ...

    def plan_attention(self, video: Segments, text: Segments, num_tokens: int) -> AttentionPlan:
        """The plan of a pack of `num_tokens` with the segments `video`, each of which attends to one of `text`."""
        ...

    def over_tokens(self, shared: torch.Tensor) -> torch.Tensor:
        """The same tensor; its gradient is summed over the ranks among which own tokens are shared out."""
        ...

    def over_heads(self, shared: torch.Tensor) -> torch.Tensor:
        """The same tensor; its gradient is summed over the ranks among which heads are shared out."""
        ...

    def attend_self(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan
    ) -> torch.Tensor:
        """Attention within the segments of the whole pack, of which each holds its attended tokens: [m, A, h]."""
        ...

    def attend_text(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan
    ) -> torch.Tensor:
        """Attention of attended tokens [m, A, h] to the text of their segment, of which each holds some: [l, A, h]."""
        ...

    def precision(self) -> AbstractContextManager[None]:
        """The context in which a block runs (FP8 autocast of Transformer Engine), entered again in recomputation."""
        ...


class LocalLayers:
    """Plain torch layers of one process, with the attention and the copies that its device has."""

    def __init__(self, attention: Attention = CPU_FLASH, *, copies: DeviceCopies | None = None) -> None:
        self.attention = attention
        self.copies = CpuCopies() if copies is None else copies

    def column(self, in_dim: int, out_dim: int, *, blocks: int = 1) -> nn.Module:
        """Linear layer; `blocks` changes nothing where nothing is split."""
        del blocks
        return nn.Linear(in_dim, out_dim)

    def column_of_whole(self, in_dim: int, out_dim: int, *, blocks: int = 1) -> nn.Module:
        """Linear layer."""
        del blocks
        return nn.Linear(in_dim, out_dim)

    def row(self, in_dim: int, out_dim: int) -> nn.Module:
        """Linear layer."""
        return nn.Linear(in_dim, out_dim)

    def replicated(self, in_dim: int, out_dim: int) -> nn.Module:
        """Linear layer."""
        return nn.Linear(in_dim, out_dim)

    def per_token(self, in_dim: int, out_dim: int) -> nn.Module:
        """Linear layer."""
        return nn.Linear(in_dim, out_dim)

    def layer_norm(self, width: int, eps: float) -> nn.Module:
        """torch's LayerNorm."""
        return nn.LayerNorm(width, eps=eps)

    def rms_norm(self, width: int, eps: float) -> nn.Module:
        """torch's RMS norm."""
        return nn.RMSNorm(width, eps=eps)

    def local_heads(self, heads: int) -> int:
        """All heads."""
        return heads

    def own(self, tokens: torch.Tensor) -> torch.Tensor:
        """The pack itself."""
        return tokens

    def attended(self, tokens: torch.Tensor) -> torch.Tensor:
        """The pack itself."""
        return tokens

    def own_text(self, text: torch.Tensor) -> torch.Tensor:
        """The text itself."""
        return text

    def plan_attention(self, video: Segments, text: Segments, num_tokens: int) -> AttentionPlan:
        """The pack's own segments."""
        del num_tokens
        return AttentionPlan(video, video, text)

    def over_tokens(self, shared: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return shared

    def over_heads(self, shared: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return shared

    def attend_self(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan
    ) -> torch.Tensor:
        """Attention by the local kernel."""
        return self.attention(query, key, value, plan.video, plan.video)[0]

    def attend_text(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan
    ) -> torch.Tensor:
        """Attention by the local kernel."""
        return self.attention(query, key, value, plan.queries, plan.text)[0]

    def precision(self) -> AbstractContextManager[None]:
        """Nothing: the weights' own precision."""
        return nullcontext()
