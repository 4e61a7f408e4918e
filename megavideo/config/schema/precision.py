"""Settings of the layers (group `layers`): whose kernels run them, and in which number format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ALWAYS_BF16 = ("embed", "modulation", "head")
Fp8Kind = Literal["none", "current", "delayed", "block", "mxfp8"]
CPU_ATTENTION = ("cpu", "stand_in")
AttentionName = Literal["auto", "cpu", "fa4", "fa3", "cudnn", "te", "fa2", "stand_in"]


@dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """Linear layers of the transformer blocks, and their attention.

    `engine` local is torch and megatron-core, te is Transformer Engine (NVIDIA GPUs). `fp8` scales by the tensor's own
    maximum (current), by that of past steps (delayed), by blocks of 128 (block) or of 32 (mxfp8, Blackwell).
    `fp8_exclude` lists parts of dotted layer names, as `blocks.0` or `cross_attention.kv`: those layers stay in bf16.

    `attention` names a kernel: flash attention 4, 3 or 2 (fa4 and fa3 from Hopper on, fa2 on any GPU), cuDNN through
    Transformer Engine (te) or its own package (cudnn), `cpu`, or the stand-in that tests run on a CPU; auto takes the
    fastest that is installed and that the chip runs. `megavideo doctor` lists them.
    """

    engine: Literal["local", "te"] = "local"
    fp8: Fp8Kind = "none"
    fp8_exclude: tuple[str, ...] = ALWAYS_BF16
    attention: AttentionName = "auto"
