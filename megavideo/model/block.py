"""One transformer block: modulated self-attention, cross-attention to the segment's own text, modulated feed-forward.

Shape legend: n own video tokens, m attended video tokens, l own text tokens, e own rows of image embeddings, R
conditioning rows, D width, A heads, h head width. In one process n = m = N, the tokens of the pack, and l = M, its text
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from megavideo.config.schema.model import ModelConfig
from megavideo.model.layers import AttentionPlan, Layers
from megavideo.model.modulation import gated_add, norm_modulate
from megavideo.model.recompute import KEEP_ALL, BlockRecompute
from megavideo.model.rope import rotate
from megavideo.model.rows import Rows


@dataclass(frozen=True)
class Conditioning:
    """What every block is told.

    time [R, D] is the embedded timestep; modulation [R, 6, D] its shared projection (None under `adaln_zero`);
    text [l, D]; rotary [m, h / 2] of attended tokens; `rows` maps own tokens to rows; `attention` says who attends to
    whom in this pack. Of models with an image embedding: image [e, D], and in `image_attention` who attends to it.
    """

    time: torch.Tensor
    modulation: torch.Tensor | None
    text: torch.Tensor
    rotary: torch.Tensor
    rows: Rows
    attention: AttentionPlan
    image: torch.Tensor | None = None
    image_attention: AttentionPlan | None = None


class SelfAttention(nn.Module):
    """Attention inside each segment, with RMS-normalised queries and keys and rotary positions."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        self.layers = layers
        self.heads = layers.local_heads(config.heads)
        self.qkv = layers.column(config.width, 3 * config.width, blocks=3)
        self.out = layers.row(config.width, config.width)
        self.q_norm = layers.rms_norm(config.width, config.eps) if config.qk_norm else nn.Identity()
        self.k_norm = layers.rms_norm(config.width, config.eps) if config.qk_norm else nn.Identity()

    def forward(self, x: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """[n, D] -> [n, D]."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        query = rotate(self.q_norm(query).unflatten(-1, (self.heads, -1)), cond.rotary)
        key = rotate(self.k_norm(key).unflatten(-1, (self.heads, -1)), cond.rotary)
        value = value.unflatten(-1, (self.heads, -1))
        return self.out(self.layers.attend_self(query, key, value, cond.attention).flatten(-2))


class CrossAttention(nn.Module):
    """Attention of each segment's tokens to that segment's text, and to its image's embedding where the model has one.

    The two are attended to apart, with keys and values of their own, and added (Wan 2.1, image to video).
    """

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        self.layers = layers
        self.heads = layers.local_heads(config.heads)
        self.q = layers.column(config.width, config.width)
        self.kv = layers.column_of_whole(config.width, 2 * config.width, blocks=2)
        self.out = layers.row(config.width, config.width)
        self.q_norm = layers.rms_norm(config.width, config.eps) if config.qk_norm else nn.Identity()
        self.k_norm = layers.rms_norm(config.width, config.eps) if config.qk_norm else nn.Identity()
        self.has_image = config.image_dim is not None
        if self.has_image:
            self.image_kv = layers.column_of_whole(config.width, 2 * config.width, blocks=2)
            self.image_k_norm = layers.rms_norm(config.width, config.eps) if config.qk_norm else nn.Identity()

    def forward(self, x: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """[n, D] -> [n, D]."""
        query = self.q_norm(self.q(x)).unflatten(-1, (self.heads, -1))
        key, value = self.kv(cond.text).chunk(2, dim=-1)
        out = self._attend(query, self.k_norm(key), value, cond.attention)
        if self.has_image:
            assert cond.image is not None and cond.image_attention is not None, "every pack has an image embedding"
            key, value = self.image_kv(cond.image).chunk(2, dim=-1)
            out = out + self._attend(query, self.image_k_norm(key), value, cond.image_attention)
        return self.out(out)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """Queries [m, A, h], keys and values [l, A * h] -> [m, A * h]."""
        key, value = (t.unflatten(-1, (self.heads, -1)) for t in (key, value))
        return self.layers.attend_text(query, key, value, plan).flatten(-2)


class FeedForward(nn.Module):
    """Two linear layers with a tanh-approximated GELU between."""

    def __init__(self, config: ModelConfig, layers: Layers, recompute: BlockRecompute = KEEP_ALL) -> None:
        super().__init__()
        self.layers = layers
        self.recompute = recompute
        self.up = layers.column(config.width, config.ffn)
        self.down = layers.row(config.ffn, config.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, D] -> [n, D]."""
        return self.recompute.run("gelu", self._activate, self.up(x))

    def _activate(self, x: torch.Tensor) -> torch.Tensor:
        with self.layers.precision():
            return self.down(F.gelu(x, approximate="tanh"))


class Block(nn.Module):
    """A DiT block; `adaln` adds a table to the shared projection, `adaln_zero` projects the timestep itself.

    Its parts, each with the norm before it, run in the layers' precision and may be recomputed; the tables of
    conditioning rows and the gated sums are small or cheap and belong to none.
    """

    def __init__(self, config: ModelConfig, layers: Layers, recompute: BlockRecompute = KEEP_ALL) -> None:
        super().__init__()
        self.eps = config.eps
        self.layers = layers
        self.recompute = recompute
        if config.modulation == "adaln":
            self.modulation_table = nn.Parameter(torch.empty(6, config.width))
        else:
            self.modulation = layers.replicated(config.width, 6 * config.width)
        self.self_attention = SelfAttention(config, layers)
        self.cross_norm = layers.layer_norm(config.width, config.eps) if config.cross_attn_norm else nn.Identity()
        self.cross_attention = CrossAttention(config, layers)
        self.ffn = FeedForward(config, layers, recompute)

    def forward(self, x: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """[n, D] -> [n, D]."""
        if cond.modulation is not None:
            table = cond.modulation + self.layers.over_tokens(self.modulation_table)
        else:
            table = self.layers.over_tokens(self.modulation(F.silu(cond.time))).unflatten(-1, (6, -1))
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = table.unbind(1)

        # the precision is entered inside, because recomputation starts there
        def attend_self(x: torch.Tensor) -> torch.Tensor:
            with self.layers.precision():
                return self.self_attention(norm_modulate(x, shift_a, scale_a, cond.rows, self.eps), cond)

        def attend_text(x: torch.Tensor) -> torch.Tensor:
            with self.layers.precision():
                return self.cross_attention(self.cross_norm(x), cond)

        def feed_forward(x: torch.Tensor) -> torch.Tensor:
            with self.layers.precision():
                return self.ffn(norm_modulate(x, shift_f, scale_f, cond.rows, self.eps))

        run = self.recompute.run
        x = gated_add(x, run("self_attention", attend_self, x), gate_a, cond.rows)
        x = x + run("cross_attention", attend_text, x)
        return gated_add(x, run("ffn", feed_forward, x), gate_f, cond.rows)
