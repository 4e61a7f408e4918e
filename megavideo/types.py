"""Values that cross rooms. Torch is named for type checkers only, so that the torch-free rooms may import this.

Shape legend: N packed video tokens, M packed text tokens, K segments, P patch width, C latent channels, I rows of an
image's embedding, E their width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IMAGE_FPS = 1.0  # of a still image, which has no rate


@dataclass(frozen=True)
class Grid:
    """Size of a token grid, or of a latent, along time, height and width."""

    t: int
    h: int
    w: int

    @property
    def num_tokens(self) -> int:
        """Tokens in the grid."""
        return self.t * self.h * self.w


@dataclass(frozen=True)
class SampleInfo:
    """One row of a dataset's manifest: all that planning needs, without reading a shard.

    `latent` is the latent's size before patchifying; `text_tokens` is the unpadded caption length.
    """

    sample_id: str
    index: int
    latent: Grid
    text_tokens: int
    fps: float
    caption: str
    source: str


@dataclass(frozen=True)
class PackSegment:
    """One sample's place in a pack: which sample, which visit of it (epoch), and its token grid."""

    index: int
    sample_id: str
    visit: int
    grid: Grid
    text_tokens: int


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch: a pack of exactly N video tokens from several clips and images.

    Tokens past `cu_seqlens[-1]` are padding and belong to no segment; unused segments have length zero, so that
    N, M and K are the same for every pack of a stage.

    tokens [N, P] noised latents, clean where `condition_mask` is set; cu_seqlens [K+1] int32; grid [K, 3] int64
    (t, h, w in tokens); text [M, text_dim]; cu_seqlens_text [K+1] int32; fps [K]; timestep [K] in 0..1000;
    condition_mask [N] bool; sample_ids K strings (empty for unused segments); visits K integers. `bounds` and
    `text_bounds` hold cu_seqlens and cu_seqlens_text on the host, whatever device the tensors are on: plans are made
    from them. A pack begins on the host, where they are read from the tensors if they are not given. `given` [N, G] has
    the further input channels of models with `model.given_channels`, ordered as in tokens, and is None for others; so
    has `image` [K, I, E] the embedding of each segment's given image, for models with `model.image_dim`.
    """

    tokens: torch.Tensor
    cu_seqlens: torch.Tensor
    grid: torch.Tensor
    text: torch.Tensor
    cu_seqlens_text: torch.Tensor
    fps: torch.Tensor
    timestep: torch.Tensor
    condition_mask: torch.Tensor
    sample_ids: tuple[str, ...]
    visits: tuple[int, ...]
    bounds: tuple[int, ...] = ()
    text_bounds: tuple[int, ...] = ()
    given: torch.Tensor | None = None
    image: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name, tensor in (("bounds", self.cu_seqlens), ("text_bounds", self.cu_seqlens_text)):
            if not getattr(self, name):
                object.__setattr__(self, name, tuple(tensor.tolist()))
