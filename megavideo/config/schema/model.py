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
    """

    layers: int = setting(minimum=1)
    width: int = setting(minimum=8)
    ffn: int = setting(minimum=8)
    heads: int = setting(minimum=1)
    latent_channels: int = setting(16, minimum=1)
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
        pt, ph, pw = self.patch
        return pt * ph * pw * self.latent_channels
