"""The diffusion transformer on packed spacetime tokens.

Shape legend: N video tokens, M text tokens, K segments, R = 2K conditioning rows, P patch width, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from megavideo.config.schema.model import ModelConfig
from megavideo.model.block import Block, Conditioning
from megavideo.model.layers import Layers
from megavideo.model.modulation import norm_modulate, sinusoid
from megavideo.model.pack_index import PackIndex
from megavideo.model.place import PLACE_FEATURES, place_features
from megavideo.model.rope import rotary_table
from megavideo.model.rows import Rows
from megavideo.types import PackedBatch


class Mlp(nn.Module):
    """Linear, activation, linear: the embedders of timestep, frame rate and text."""

    def __init__(self, in_dim: int, width: int, layers: Layers, *, activation: nn.Module) -> None:
        super().__init__()
        self.fc1 = layers.replicated(in_dim, width)
        self.activation = activation
        self.fc2 = layers.replicated(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_dim] -> [..., width]."""
        return self.fc2(self.activation(self.fc1(x)))


class Embedder(nn.Module):
    """Tokens, timestep, frame rate and text to the model's width."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        self.config = config
        self.layers = layers
        self.patch = layers.replicated(config.patch_dim, config.width)
        self.time = Mlp(config.time_dim, config.width, layers, activation=nn.SiLU())
        self.text = Mlp(config.text_dim, config.width, layers, activation=nn.GELU(approximate="tanh"))
        if config.modulation == "adaln":
            self.modulation = layers.replicated(config.width, 6 * config.width)
        if config.fps_conditioning:
            self.fps = Mlp(config.time_dim, config.width, layers, activation=nn.SiLU())
        if config.place_embedding:
            self.place = layers.replicated(PLACE_FEATURES, config.width)

    def forward(self, batch: PackedBatch) -> tuple[torch.Tensor, Conditioning]:
        """A pack to its hidden state [N, D] (this rank's tokens) and the conditioning of all blocks."""
        config, index = self.config, PackIndex.of(batch)
        dtype = batch.tokens.dtype
        # second half of the rows: the given (clean) tokens of each segment, at timestep zero
        timestep = torch.cat([batch.timestep, torch.zeros_like(batch.timestep)])
        time = self.time(sinusoid(timestep, config.time_dim).to(dtype))
        if config.fps_conditioning:
            fps = sinusoid(torch.cat([batch.fps, batch.fps]), config.time_dim).to(dtype)
            time = time + self.fps(fps)
        modulation = self.modulation(F.silu(time)).unflatten(-1, (6, -1)) if config.modulation == "adaln" else None
        enter = self.layers.enter
        cond = Conditioning(
            time=time,
            modulation=modulation,
            text=self.text(batch.text),
            rotary=rotary_table(enter(index.position), config.head_dim, dtype),
            rows=Rows(enter(index.row), timestep.shape[0], dtype),
            video=index.video,
            captions=index.text,
        )
        x = self.patch(enter(batch.tokens))
        if config.place_embedding:
            x = x + self.place(place_features(enter(index.place), dtype))
        return x, cond


class Head(nn.Module):
    """Final modulated norm and projection back to patches."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        self.eps = config.eps
        self.layers = layers
        if config.modulation == "adaln":
            self.modulation_table = nn.Parameter(torch.empty(2, config.width))
        else:
            self.modulation = layers.replicated(config.width, 2 * config.width)
        self.proj = layers.replicated(config.width, config.patch_dim)

    def forward(self, x: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """[N, D] -> [N, P], whole again on every rank."""
        if cond.modulation is not None:
            shift, scale = (cond.time[:, None] + self.modulation_table).unbind(1)
        else:
            shift, scale = self.modulation(F.silu(cond.time)).chunk(2, dim=-1)
        return self.layers.leave(self.proj(norm_modulate(x, shift, scale, cond.rows, self.eps)))


class DiT(nn.Module):
    """A Wan-shaped video DiT: `recompute` keeps only each block's input for the backward pass."""

    def __init__(self, config: ModelConfig, layers: Layers, *, recompute: bool = False) -> None:
        super().__init__()
        self.config = config
        self.recompute = recompute
        self.embed = Embedder(config, layers)
        self.blocks = nn.ModuleList(Block(config, layers) for _ in range(config.layers))
        self.head = Head(config, layers)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Prediction for every token of the pack, [N, P]; rows of padding tokens have no meaning."""
        x, cond = self.embed(batch)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, cond, use_reentrant=False)
            else:
                x = block(x, cond)
        return self.head(x, cond)
