"""Weights of a Wan transformer read as ours: each rank takes the rows that it needs from the files as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch

from megavideo.checkpoint.weight_reader import WeightReader
from megavideo.config.schema.model import ModelConfig
from megavideo.interop.dialects import derive_model, detect_dialect
from megavideo.interop.names import TensorRule, tensor_rules
from megavideo.interop.source import Expert, Source, find_source
from megavideo.interop.tensors import TensorFiles
from megavideo.interop.weights import check_tensors, our_shapes
from megavideo.parallel.engines.fragments import WEIGHT
from megavideo.parallel.layers.sharding import Shard


class WanReader(WeightReader):
    """The weights in `source` under our names; they have no other state.

    `model` is what the files tell of (`dialects.derive_model`), in which `heads` counts where no config.json does.
    `check` compares all tensors with it. Raises CheckpointError and ConfigError as `TensorFiles`, `detect_dialect` and
    `derive_model` do.
    """

    other_place = "take the weights from another file, as these cannot be computed with"

    def __init__(self, source: Source, heads: int | None = None) -> None:
        super().__init__(str(source.place))
        self.source = source
        self._files = TensorFiles(source)
        held = self._files.shapes
        self.dialect = detect_dialect(held, source.place)
        self.model: ModelConfig = derive_model(held, self.dialect, source.config, heads, source.place)
        self._rules: dict[str, TensorRule] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    @classmethod
    def at(cls, place: Path, expert: Expert | None = None, heads: int | None = None) -> WanReader:
        """The weights in a file or folder; raises as `find_source` besides."""
        return cls(find_source(place, expert), heads)

    def check(self) -> None:
        """Compare names and shapes of all tensors with the model's; nothing can be read before.

        Raises CheckpointError naming those that are missing, unexpected or of another shape.
        """
        rules = tensor_rules(self.model, self.dialect)
        check_tensors(self._files.shapes, self.model, self.dialect, self.place)
        self._rules = {rule.ours: rule for rule in rules}
        self._shapes = our_shapes(self.model)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Whole shapes of the parameters."""
        return self._shapes

    @property
    def states(self) -> set[str]:
        """The weight alone."""
        return {WEIGHT}

    def stored(self, name: str) -> torch.Tensor:
        """A whole parameter in the type of its file; what is not finite in it is counted."""
        rule = self._rules[name]
        whole = rule.to_ours([self._files.read(part) for part in rule.theirs])
        self._count.add(WEIGHT, name, whole)
        return whole

    def _read(self, state: str, name: str, shard: Shard, start: int, numel: int) -> torch.Tensor:
        """Of a matrix the rows over which the range lies; of what has another form there, which is small, the whole."""
        rule, shape = self._rules[name], self._shapes[name]
        if rule.form != "same":
            whole = rule.to_ours([self._files.read(part) for part in rule.theirs])
            return shard.take(whole).flatten()[start : start + numel]
        row = math.prod(shard.local_shape(shape)[1:])
        first, last = start // row, -(-(start + numel) // row)
        rows = torch.cat(list(self._rows(rule, shape, shard, first, last)))
        return rows.flatten()[start - first * row : start - first * row + numel]

    def _rows(
        self, rule: TensorRule, shape: tuple[int, ...], shard: Shard, first: int, last: int
    ) -> Iterator[torch.Tensor]:
        """Rows [first, last) of a shard, in runs that lie together in one of their tensors."""
        whole = torch.arange(first, last)
        if shard.count > 1 and shard.dim == 0:
            whole = Shard(0, shard.blocks, shard.index, shard.count).whole_positions((shape[0], 1), first, last - first)
        per_part = shape[0] // len(rule.theirs)
        breaks = ((whole.diff() != 1) | (whole[1:] % per_part == 0)).nonzero().flatten() + 1
        for begin, end in pairwise([0, *breaks.tolist(), len(whole)]):
            part, row = divmod(int(whole[begin]), per_part)
            rows = slice(row, row + end - begin)
            pieces = [self._files.read(rule.theirs[part], rows, cut) for cut in _columns(shape, shard)]
            yield pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def _columns(shape: tuple[int, ...], shard: Shard) -> list[slice | None]:
    """The columns of a shard that is cut along them; None for all."""
    if shard.count == 1 or shard.dim == 0:
        return [None]
    block = shape[1] // shard.blocks
    piece = block // shard.count
    begins = (number * block + shard.index * piece for number in range(shard.blocks))
    return [slice(begin, begin + piece) for begin in begins]
