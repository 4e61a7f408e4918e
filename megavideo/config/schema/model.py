"""Settings of the diffusion transformer (group `model`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megavideo.config.schema.field import setting

Modulation = Literal["adaln", "adaln_zero"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the DiT.

    `adaln` shares one projection and adds a table per block (Wan); `adaln_zero` projects per block. Two additions that
    Wan has not: `fps_conditioning` embeds the frame rate with the timestep, and `place_embedding` tells each token its
    place in its own clip, which rotary positions, being relative, do not.

    `given_channels` are further input channels beside the latent ones (Wan's image-to-video models have 20: 4 of a mask
    and 16 of the latent that is given). `image_dim` is the width of an image embedding to which cross-attention attends
    besides the text (Wan 2.1's image-to-video models: 1280); None for models without.
    """

    layers: int = setting(minimum=1)
    width: int = setting(minimum=8)
    ffn: int = setting(minimum=8)
    heads: int = setting(minimum=1)
    latent_channels: int = setting(16, minimum=1)
    given_channels: int = setting(0, minimum=0)
    image_dim: int | None = setting(None, minimum=1)
    text_dim: int = setting(minimum=1)
    patch: tuple[int, int, int] = (1, 2, 2)
    time_dim: int = setting(256, minimum=2)
    modulation: Modulation = "adaln"
    cross_attn_norm: bool = True
    qk_norm: bool = True
    fps_conditioning: bool = False
    place_embedding: bool = False
    eps: float = setting(1e-6, above=0.0)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one token: pt * ph * pw * latent channels."""
        return self._patch_cells * self.latent_channels

    @property
    def given_dim(self) -> int:
        """Numbers that a token is given beside its own: pt * ph * pw * given channels."""
        return self._patch_cells * self.given_channels

    @property
    def _patch_cells(self) -> int:
        pt, ph, pw = self.patch
        return pt * ph * pw
