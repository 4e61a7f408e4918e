"""The layers of a process among several: tensor, sequence and context parallel, in any combination.

Shape legend: N tokens of the pack, n own tokens, m attended tokens, M text tokens of the pack, l own text tokens,
A local heads, h head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from megavideo.device.copies import DeviceCopies
from megavideo.model.attention.cpu_flash import CPU_FLASH
from megavideo.model.attention.operator import Attention
from megavideo.model.attention.segments import Segments
from megavideo.model.layers import AttentionPlan, LocalLayers
from megavideo.parallel.layers.collectives import gather, sum_gradients
from megavideo.parallel.layers.ring import RingPlan, ring_attend
from megavideo.parallel.layers.tensor_layers import (
    PerTokenLayerNorm,
    PerTokenLinear,
    ShardedRmsNorm,
    column_layer,
    row_layer,
)
from megavideo.parallel.layers.ulysses import heads_for_tokens, tokens_for_heads
from megavideo.parallel.processes.groups import Groups
from megavideo.parallel.processes.mesh import ProcessMesh


@dataclass(frozen=True)
class ParallelPlan(AttentionPlan):
    """The plan of a rank among several; `ring` is there where its group has more than one rank."""

    ring: RingPlan | None


class ParallelLayers(LocalLayers):
    """Local layers, replaced where the mesh shares heads (tp) or tokens (sp, cp) out."""

    def __init__(
        self, mesh: ProcessMesh, groups: Groups, attention: Attention = CPU_FLASH, *, copies: DeviceCopies | None = None
    ) -> None:
        super().__init__(attention, copies=copies)
        self._mesh = mesh
        self._groups = groups

    def column(self, in_dim: int, out_dim: int, *, blocks: int = 1) -> nn.Module:
        """Under tp: gathers own tokens, and holds out_dim / tp of the output."""
        if self._mesh.tp == 1:
            return super().column(in_dim, out_dim, blocks=blocks)
        return column_layer(in_dim, out_dim, blocks, self._groups.tp, sequence_parallel=self._mesh.sp)

    def column_of_whole(self, in_dim: int, out_dim: int, *, blocks: int = 1) -> nn.Module:
        """Under tp: holds out_dim / tp of the output; its input's gradient is summed by `over_heads`."""
        if self._mesh.tp == 1:
            return super().column_of_whole(in_dim, out_dim, blocks=blocks)
        return column_layer(in_dim, out_dim, blocks, self._groups.tp, sequence_parallel=False, whole_input=True)

    def row(self, in_dim: int, out_dim: int) -> nn.Module:
        """Under tp: sums over the shards, and under sp keeps own tokens."""
        if self._mesh.tp == 1:
            return super().row(in_dim, out_dim)
        return row_layer(in_dim, out_dim, self._groups.tp, sequence_parallel=self._mesh.sp)

    def per_token(self, in_dim: int, out_dim: int) -> nn.Module:
        """Under sp: gradients summed over tp."""
        return PerTokenLinear(in_dim, out_dim, self._groups.tp) if self._mesh.sp else super().per_token(in_dim, out_dim)

    def layer_norm(self, width: int, eps: float) -> nn.Module:
        """Under sp: gradients summed over tp."""
        return PerTokenLayerNorm(width, eps, self._groups.tp) if self._mesh.sp else super().layer_norm(width, eps)

    def rms_norm(self, width: int, eps: float) -> nn.Module:
        """Under tp: over the whole width, of which each rank holds a part."""
        return ShardedRmsNorm(width, eps, self._groups.tp) if self._mesh.tp > 1 else super().rms_norm(width, eps)

    def local_heads(self, heads: int) -> int:
        """Heads of this tp rank."""
        return heads // self._mesh.tp

    def own(self, tokens: torch.Tensor) -> torch.Tensor:
        """One of cp runs, and under sp one of tp parts of it."""
        return tokens[self._mesh.own_tokens(tokens.shape[0])]

    def attended(self, tokens: torch.Tensor) -> torch.Tensor:
        """One of cp runs."""
        return tokens[self._mesh.attended_tokens(tokens.shape[0])]

    def own_text(self, text: torch.Tensor) -> torch.Tensor:
        """One of cp runs; the last ones are filled up with zeros."""
        if self._mesh.cp == 1:
            return text
        rows = self._mesh.own_text(text.shape[0])
        own = text[rows]
        return F.pad(own, (0, 0, 0, rows.stop - rows.start - own.shape[0]))

    def plan_attention(self, video: Segments, text: Segments, num_tokens: int) -> ParallelPlan:
        """Queries of the text are a rank's attended tokens; the ring's exchanges follow from the pack's bounds."""
        mesh = self._mesh
        run = mesh.attended_tokens(num_tokens)
        queries = video if mesh.cp == 1 else video.clipped(run.start, run.stop)
        ring = None if mesh.ring == 1 else RingPlan.of(video, num_tokens // mesh.ring, self._groups.ring)
        return ParallelPlan(video, queries, text, ring)

    def over_tokens(self, shared: torch.Tensor) -> torch.Tensor:
        """Gradient summed over tp under sp. Over cp the engine sums the gradients of parameters."""
        return sum_gradients(shared, self._groups.tp) if self._mesh.sp else shared

    def over_heads(self, shared: torch.Tensor) -> torch.Tensor:
        """Gradient summed over tp."""
        return sum_gradients(shared, self._groups.tp) if self._mesh.tp > 1 else shared

    def attend_self(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan
    ) -> torch.Tensor:
        """Ulysses inside, ring across: all-to-all to some heads of a longer run, whose blocks go round the ring."""
        assert isinstance(plan, ParallelPlan), "plans are made by the layers that use them"
        ulysses = self._groups.ulysses
        query, key, value = (heads_for_tokens(t, ulysses) for t in (query, key, value))
        if plan.ring is None:
            out = super().attend_self(query, key, value, plan)
        else:
            out = ring_attend(query, key, value, plan.ring, self.attention)
        return tokens_for_heads(out, ulysses)

    def attend_text(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan
    ) -> torch.Tensor:
        """Under cp: keys and values [l, A, h] of a rank's share of the text, brought together on every rank."""
        if self._mesh.cp > 1:
            key, value = gather(torch.stack([key, value], dim=1), self._groups.cp).unbind(1)
        return super().attend_text(query, key, value, plan)
