"""Settings of the linear layers (group `layers`): whose kernels run them, and in which number format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ALWAYS_BF16 = ("embed", "modulation", "head")
Fp8Kind = Literal["none", "current", "delayed", "block", "mxfp8"]


@dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """Linear layers of the transformer blocks.

    `engine` local is torch and megatron-core, te is Transformer Engine (NVIDIA GPUs). `fp8` scales by the tensor's own
    maximum (current), by that of past steps (delayed), by blocks of 128 (block) or of 32 (mxfp8, Blackwell).
    `fp8_exclude` lists parts of dotted layer names, as `blocks.0` or `cross_attention.kv`: those layers stay in bf16.
    """

    engine: Literal["local", "te"] = "local"
    fp8: Fp8Kind = "none"
    fp8_exclude: tuple[str, ...] = ALWAYS_BF16
