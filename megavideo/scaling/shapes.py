"""From a size to a shape, by one rule, and what a shape costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from megavideo.config.schema.fit import ShapeConfig
from megavideo.config.schema.model import ModelConfig
from megavideo.planning.flops import BlockShape, train_flops

_FFN_MULTIPLE = 64
_LEAST_LAYERS = 2
_MOST_WIDTH = 32_768


def shaped(model: ModelConfig, rule: ShapeConfig, width: int) -> ModelConfig:
    """`model` at another width, with layers, feed-forward and heads by the rule."""
    ffn = max(1, round(rule.ffn_ratio * width / _FFN_MULTIPLE)) * _FFN_MULTIPLE
    layers = max(_LEAST_LAYERS, round(width / rule.aspect))
    return replace(model, width=width, ffn=ffn, layers=layers, heads=width // rule.head_dim)


def shapes(model: ModelConfig, rule: ShapeConfig) -> Iterator[ModelConfig]:
    """All shapes of the rule, the smallest first."""
    for width in range(rule.head_dim, _MOST_WIDTH + 1, rule.head_dim):
        yield shaped(model, rule, width)


def flops_per_token(model: ModelConfig, clip_tokens: int, text_tokens: int) -> float:
    """Training FLOPs of one video token, in clips of `clip_tokens` with captions of `text_tokens`."""
    shape = BlockShape(model.layers, model.width, model.ffn)
    return train_flops(shape, [(clip_tokens, text_tokens)]) / clip_tokens
