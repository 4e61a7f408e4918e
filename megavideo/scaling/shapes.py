"""From a size to a shape, by one rule, and what a shape holds and costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from megavideo.config.schema.fit import ShapeConfig
from megavideo.config.schema.model import ModelConfig
from megavideo.planning.flops import BlockShape, train_flops

_FFN_MULTIPLE = 64
_LEAST_LAYERS = 2
_MOST_WIDTH = 32_768
_PLACE_FEATURES = 24  # of `place_embedding`; a test holds it to the model's own


def shaped(model: ModelConfig, rule: ShapeConfig, width: int) -> ModelConfig:
    """`model` at another width, with layers, feed-forward and heads by the rule."""
    ffn = max(1, round(rule.ffn_ratio * width / _FFN_MULTIPLE)) * _FFN_MULTIPLE
    layers = max(_LEAST_LAYERS, round(width / rule.aspect))
    return replace(model, width=width, ffn=ffn, layers=layers, heads=width // rule.head_dim)


def shapes(model: ModelConfig, rule: ShapeConfig) -> Iterator[ModelConfig]:
    """All shapes of the rule, the smallest first."""
    for width in range(rule.head_dim, _MOST_WIDTH + 1, rule.head_dim):
        yield shaped(model, rule, width)


def num_parameters(model: ModelConfig) -> int:
    """Parameters of the whole DiT, as `megavideo.model` builds it, embedders and head among them."""
    d, adaln = model.width, model.modulation == "adaln"
    time = _linear(model.time_dim, d) + _linear(d, d)
    text = _linear(model.text_dim, d) + _linear(d, d)
    embedder = _linear(model.patch_dim + model.given_dim, d) + time + text
    embedder += _linear(d, 6 * d) if adaln else 0
    embedder += time if model.fps_conditioning else 0
    embedder += _linear(_PLACE_FEATURES, d) if model.place_embedding else 0
    attention = 4 * _linear(d, d) + (2 * d if model.qk_norm else 0)
    block = 2 * attention + _linear(d, model.ffn) + _linear(model.ffn, d)
    block += 2 * d if model.cross_attn_norm else 0
    block += 6 * d if adaln else _linear(d, 6 * d)
    head = (2 * d if adaln else _linear(d, 2 * d)) + _linear(d, model.patch_dim)
    return embedder + model.layers * block + head


def flops_per_token(model: ModelConfig, clip_tokens: int, text_tokens: int) -> float:
    """Training FLOPs of one video token, in clips of `clip_tokens` with captions of `text_tokens`."""
    shape = BlockShape(model.layers, model.width, model.ffn)
    return train_flops(shape, [(clip_tokens, text_tokens)]) / clip_tokens


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs
