"""Attention of every point to all points of its frame and of earlier ones, in memory that the length does not change.

Keys are met a run at a time, and what was mixed before is scaled to the new maximum (Milakov and Gimelshein 2018, Rabe
and Staats 2021), so that no matrix of all pairs is ever there.
"""

from __future__ import annotations

import torch

from megavideo.encoders.tiles.activation import Activation
from megavideo.encoders.tiles.layer import LayerRunner

_QUERIES, _KEYS = 2048, 8192


def frame_causal_attention(joined: Activation, runner: LayerRunner) -> Activation:
    """One head of attention [1, C, T, H, W] of `joined` [1, 3C, T, H, W], which is query, key and value in this order.

    Computed in float32, at the scale 1 / sqrt(C).
    """
    channels = joined.values.shape[1] // 3
    frames, height, width = joined.size
    out = runner.empty(channels, joined.size)
    points, mixed = joined.values[0].flatten(1), out.values[0].flatten(1)
    for frame in range(frames):
        # all that a frame sees ends with it, so that nothing need be masked
        seen = (frame + 1) * height * width
        for begin in range(frame * height * width, seen, _QUERIES):
            end = min(begin + _QUERIES, seen)
            query = points[:channels, begin:end].to(runner.device).float() * channels**-0.5
            mixed[:, begin:end] = _attend(query, points[channels:, :seen]).to(mixed)
    return out


def _attend(query: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Mixed values [C, n] for queries [C, n] that are scaled; `seen` holds keys and values [2C, N] on the host."""
    top = torch.full_like(query[0], -torch.inf)
    total = torch.zeros_like(top)
    mixed = torch.zeros_like(query)
    for run in seen.split(_KEYS, dim=1):
        key, value = run.to(query.device).float().chunk(2)
        scores = key.T @ query
        raised = torch.maximum(top, scores.amax(0))
        weights = torch.exp(scores - raised)
        fade = torch.exp(top - raised)
        total = total * fade + weights.sum(0)
        mixed = mixed * fade + value @ weights
        top = raised
    return mixed / total
