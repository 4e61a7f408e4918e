"""Which points of a layer's input its output depends on, axis by axis.

Points of an output lie over those of the input like this (`down=2` and `up=2`), in space and, where the first frame
stands alone, in time:

    input   0 1 2 3      output  0 1 2 3      input   0 1 2 3 4      output  0 1 2 3 4
    output   0   1       input    0   1       output  0  1   2       input   0  1   2
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

# Frames, rows and columns, each a range of points with both ends given.
Box = tuple[slice, slice, slice]
Size = tuple[int, int, int]


@dataclass(frozen=True)
class Axis:
    """One axis of a layer.

    `before` and `after` are how far an output point sees beyond the input points that it lies over, counted in points
    of the coarser side. They may be too large but never too small: what is computed from a cut end is thrown away.
    Where frames are joined, `before` is at least 1, because a part begins with the last of the frames under a point.
    """

    up: int = 1
    down: int = 1
    before: int = 0
    after: int = 0
    first_alone: bool = False

    def length(self, points: int) -> int:
        """Points of the output of an input of so many."""
        alone = int(self.first_alone)
        return alone + (points - alone) * self.up // self.down

    def source(self, target: slice, points: int) -> tuple[slice, slice]:
        """The part of an input of `points` that `target` is computed from, and where `target` lies in what comes out.

        A part begins where an output point does, so that the first frame of a part stands alone like that of a clip.
        """
        begin, end, alone = target.start, target.stop, int(self.first_alone)
        low = max(0, (begin // self.up - self.before) * self.down)
        high = min(points, (-(-(end - alone) // self.up) + self.after) * self.down + alone)
        skip = begin - low * self.up // self.down
        return slice(low, high), slice(skip, skip + end - begin)


def cover(size: Size, tile: Size) -> Iterator[Box]:
    """Boxes of at most `tile` that cover `size` and share no point."""
    runs = [
        [slice(begin, min(begin + step, length)) for begin in range(0, length, step)]
        for length, step in zip(size, tile, strict=True)
    ]
    yield from itertools.product(*runs)
