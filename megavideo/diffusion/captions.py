"""Which of a sample's captions a visit is trained with: drawn by weight, from the sample's own randomness."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from megavideo.diffusion.randomness import SampleKey


def choose_caption(weights: Sequence[float], key: SampleKey) -> int:
    """The index of the caption for this visit: `i` with probability `weights[i] / sum(weights)`.

    A function of seed, sample and visit alone, so that every rank and layout, and a resumed run, draws the same.
    Raises ValueError where the weights are no such: none, negative, not finite, or all zero.
    """
    ends = list(accumulate(weights))
    if not ends or min(weights) < 0 or not math.isfinite(ends[-1]) or ends[-1] <= 0:
        raise ValueError(f"{list(weights)} are no weights to draw by")
    if len(ends) == 1:
        return 0
    # To the right of equal ends, so that a weight of zero is never drawn; rounding can reach the sum itself.
    drawn = bisect_right(ends, key.uniform("caption") * ends[-1])
    return min(drawn, bisect_right(ends, math.nextafter(ends[-1], 0.0)))
