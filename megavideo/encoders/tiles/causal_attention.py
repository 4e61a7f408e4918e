"""Attention of every point to all points of its frame and of earlier ones, without a mask of all pairs."""

from __future__ import annotations

import torch
from torch.nn import functional

from megavideo.encoders.tiles.activation import Activation
from megavideo.encoders.tiles.layer import LayerRunner

_QUERIES = 2048


def frame_causal_attention(joined: Activation, runner: LayerRunner) -> Activation:
    """One head of attention [1, C, T, H, W] of `joined` [1, 3C, T, H, W], which is query, key and value in this order.

    Computed by torch, in the dtype of the weights and at the scale 1 / sqrt(C): what the class calls with a mask. The
    device holds the keys and values of all points, and some queries at a time.
    """
    channels = joined.values.shape[1] // 3
    frames, height, width = joined.size
    out = runner.empty(channels, joined.size)
    points, mixed = joined.values[0].flatten(1), out.values[0].flatten(1)
    key, value = (_as_sequence(part, runner) for part in points[channels:].chunk(2))
    for frame in range(frames):
        # all that a frame sees ends with it, so that nothing need be masked
        seen = (frame + 1) * height * width
        for begin in range(frame * height * width, seen, _QUERIES):
            end = min(begin + _QUERIES, seen)
            query = _as_sequence(points[:channels, begin:end], runner)
            done = functional.scaled_dot_product_attention(query, key[:, :, :seen], value[:, :, :seen])
            mixed[:, begin:end] = done[0, 0].T.to(mixed.device)
    return out


def _as_sequence(values: torch.Tensor, runner: LayerRunner) -> torch.Tensor:
    """Values [1, 1, n, C] on the device, in the memory order that its kernels take, of values [C, n]."""
    return runner.to_device(values).T.contiguous()[None, None]
