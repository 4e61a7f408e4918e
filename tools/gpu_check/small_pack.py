"""A small model and one pack with everything that a pack can have: padding, given tokens, segments without tokens."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.train import RecomputeConfig
from megavideo.model.dit import DiT
from megavideo.model.init import initial_value
from megavideo.model.layers import Layers
from megavideo.types import Grid, PackedBatch

CONFIG = ModelConfig(
    layers=3, width=256, ffn=1024, heads=2, latent_channels=16, text_dim=128, time_dim=256, fps_conditioning=True
)
NO_GRID = Grid(0, 0, 0)
# the second has text and no video, the fourth video and no text, and the last neither
GRIDS = (Grid(5, 8, 8), NO_GRID, Grid(1, 10, 12), Grid(2, 6, 6), NO_GRID)
TEXTS = (7, 5, 20, 0, 0)
TOKENS, TEXT = 544, 64
_GIVEN = 64  # the first latent frame of the first clip
_PADDING_SIZE = 10.0  # numbers in padding are larger than any others, so that they would be seen


@dataclass(frozen=True)
class Given:
    """A pack [N, P], what its tokens should become [N, P] float32, and the weight of each token's error [N]."""

    pack: PackedBatch
    target: torch.Tensor
    weight: torch.Tensor

    def loss(self, prediction: torch.Tensor) -> torch.Tensor:
        """Mean over weighted tokens; rows of weight 0 may hold anything."""
        kept = self.weight > 0
        error = (prediction.to(self.target.dtype) - self.target).square().mean(-1)
        return torch.where(kept, error, 0.0).sum() / _NUM_WEIGHTED


_NUM_TOKENS = sum(grid.num_tokens for grid in GRIDS)
_NUM_WEIGHTED = _NUM_TOKENS - _GIVEN


def given(device: torch.device, dtype: torch.dtype) -> Given:
    """The same numbers on every device, rounded to bf16 in every precision."""
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(torch.bfloat16)

    tokens, text = random(TOKENS, CONFIG.patch_dim), random(TEXT, CONFIG.text_dim)
    tokens[_NUM_TOKENS:] *= _PADDING_SIZE
    text[sum(TEXTS) :] *= _PADDING_SIZE
    target = random(TOKENS, CONFIG.patch_dim).to(torch.float64 if dtype == torch.float64 else torch.float32)
    mask = torch.arange(TOKENS) < _GIVEN
    weight = ((torch.arange(TOKENS) < _NUM_TOKENS) & ~mask).to(torch.float32)
    bounds, text_bounds = _bounds(grid.num_tokens for grid in GRIDS), _bounds(TEXTS)
    count = len(GRIDS)
    pack = PackedBatch(
        tokens=tokens.to(device, dtype),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32).to(device),
        grid=torch.tensor([[grid.t, grid.h, grid.w] for grid in GRIDS]).to(device),
        text=text.to(device, dtype),
        cu_seqlens_text=torch.tensor(text_bounds, dtype=torch.int32).to(device),
        fps=torch.linspace(8.0, 24.0, count).to(device),
        timestep=torch.linspace(100.0, 900.0, count).to(device),
        condition_mask=mask.to(device),
        sample_ids=tuple(f"s{i}" for i in range(count)),
        visits=(0,) * count,
        bounds=bounds,
        text_bounds=text_bounds,
    )
    return Given(pack, target.to(device), weight.to(device))


def start_value(name: str, shape: torch.Size) -> torch.Tensor:
    """Start weights of the product, but for the head's, which begin at zero: nothing behind them had a gradient."""
    if name == "head.proj.weight":
        return 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return initial_value(name, shape, seed=0)


@torch.no_grad()
def small_dit(
    layers: Layers, device: torch.device, dtype: torch.dtype, recompute: RecomputeConfig | None = None
) -> DiT:
    """The model with these weights, rounded to bf16 in every precision."""
    model = DiT(CONFIG, layers, recompute=recompute)
    for name, parameter in model.named_parameters():
        parameter.copy_(start_value(name, parameter.shape).to(torch.bfloat16))
    return model.to(device, dtype)


def _bounds(lengths: object) -> tuple[int, ...]:
    return tuple(itertools.accumulate(lengths, initial=0))  # type: ignore[call-overload]
