"""Working on a picture in overlapping squares whose results are faded into each other.

For networks that cannot be cut exactly, because they normalise over the whole picture or see very far. Each tile has a
margin; the outer half of it, which has seen the tile's edge most, is dropped, and over the inner half two neighbours
change places linearly, so that there is no seam.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def in_blended_tiles(
    x: torch.Tensor, tile: int, margin: int, scale: tuple[int, int], work: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """`work(x)` for x [B, C, T, H, W], tile by tile.

    `tile` and `margin` count cells, of which one is `scale[0]` points of `x` and `scale[1]` of the output.
    """
    before, after = scale
    height, width = x.shape[3] // before, x.shape[4] // before
    total: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            rows, columns = _span(top, tile, margin, height), _span(left, tile, margin, width)
            inside = x[..., rows[0] * before : rows[1] * before, columns[0] * before : columns[1] * before]
            done = work(inside)
            fade = _fade(rows, top, tile, margin, height, after)[:, None]
            fade = (fade * _fade(columns, left, tile, margin, width, after)).to(done)
            if total is None or weights is None:
                total = torch.zeros(
                    *done.shape[:3], height * after, width * after, dtype=done.dtype, device=done.device
                )
                weights = torch.zeros(height * after, width * after, dtype=done.dtype, device=done.device)
            place = (slice(rows[0] * after, rows[1] * after), slice(columns[0] * after, columns[1] * after))
            total[..., place[0], place[1]] += done * fade
            weights[place] += fade
    assert total is not None and weights is not None
    return total / weights


def _span(begin: int, tile: int, margin: int, length: int) -> tuple[int, int]:
    return max(0, begin - margin), min(length, begin + tile + margin)


def _fade(span: tuple[int, int], begin: int, tile: int, margin: int, length: int, after: int) -> torch.Tensor:
    """Weights of a tile's points along one axis: 1 inside, falling to 0 half a margin beyond its edges."""
    points = (torch.arange(span[0] * after, span[1] * after) + 0.5) / after
    half = margin / 2
    weight = torch.ones(len(points))
    if begin > 0:
        weight = weight * ((points - (begin - half)) / (2 * half)).clamp(0.0, 1.0)
    if begin + tile < length:
        weight = weight * ((begin + tile + half - points) / (2 * half)).clamp(0.0, 1.0)
    return weight
