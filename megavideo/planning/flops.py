"""The only FLOPs formula: multiply-add counts two, from the real lengths of the segments, without recomputation.

Of a layer are counted the projections (4 d^2 self, 2 d^2 cross on video, 2 d^2 on text), the feed-forward (n_f d f),
and attention's scores and values (4 s^2 d self, 4 s t d cross): Kaplan et al. 2020, section 2.1, with cross-attention.
Embedders, modulation and head, norms and softmax are left out. Tests hold it to what torch counts of the model, and to
the totals that are published for Step-Video-T2V and Wan 14B.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class BlockShape:
    """What the formula needs of a model. `ffn_matrices` is 2 for GELU, 3 for SwiGLU."""

    layers: int
    width: int
    ffn: int
    ffn_matrices: int = 2


def forward_flops(shape: BlockShape, video_tokens: int, text_tokens: int) -> int:
    """FLOPs of one forward pass of one sample of `video_tokens` and `text_tokens`."""
    s, t, d, f = video_tokens, text_tokens, shape.width, shape.ffn
    linear = 2 * s * (4 * d * d + 2 * d * d + shape.ffn_matrices * d * f)
    text = 2 * (2 * d * d) * t
    return shape.layers * (linear + text + 4 * s * s * d + 4 * s * t * d)


def train_flops(shape: BlockShape, segments: Iterable[tuple[int, int]]) -> int:
    """FLOPs of forward and backward over segments of (video tokens, text tokens): three forward passes."""
    return 3 * sum(forward_flops(shape, s, t) for s, t in segments)
