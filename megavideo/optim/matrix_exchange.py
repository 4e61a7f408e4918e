"""Updates of whole matrices, of which each rank holds a run of elements or a shard: gathered, computed once, returned.

Each matrix is computed by one rank of those that hold the same blocks (tp x data). In a round every rank computes at
most one; those of a round are alike in size. So work and memory are shared evenly, whatever the layout.

Every element that an optimizer updates goes to its matrix's rank once and comes back once: with p bytes an element at
most 2p bytes a parameter and step, over all ranks, under ZeRO 1 to 3. Without ZeRO, where ranks of the data axis hold
copies, one of them sends and all receive: p (1 + copies).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from megavideo.optim.newton_schulz import matrix_update
from megavideo.parallel.engines.engine import Engine
from megavideo.parallel.engines.fragments import Place, held_places
from megavideo.parallel.layers.sharding import Shard, part_shape
from megavideo.parallel.processes.groups import make_group


@dataclass(frozen=True)
class _Matrix:
    """One of the matrices stacked in parameter `number`: elements [begin, end) of its flattened part on each tp rank.

    `shape` is that of these elements, the part of the matrix along `dim` that one of `count` tp ranks has. `owner` is
    the rank of the group that computes it.
    """

    number: int
    shape: tuple[int, int]
    begin: int
    end: int
    dim: int
    count: int
    owner: int = 0


class MatrixExchange:
    """Knows which rank holds what of each parameter that Muon trains. Made by a collective call of all processes.

    `matrices` tells the number of matrices stacked in each; `dtype` is what is sent and computed in. `flats` has the
    ids of the tensors, as the optimizer is given them, in which such parameters lie.
    """

    def __init__(self, engine: Engine, matrices: Mapping[torch.Tensor, int], dtype: torch.dtype) -> None:
        groups, mesh = engine.plan.groups, engine.plan.mesh
        self._dtype = dtype
        self._tp = mesh.tp
        # without ZeRO each rank of the data axis holds everything
        self._copies = engine.zero == 0
        device = next(parameter for _, parameter in engine.named_parameters()).device
        # the data axis alone is a group that there is already
        self._group = groups.data if mesh.tp == 1 else make_group(mesh, ("tp", "ulysses", "ring", "dp"), device)
        self._numbers = {id(flat): number for number, flat in enumerate(_flat_tensors(engine))}
        self._ranks = self._group.size()
        held = [item for item in engine.local_parameters() if item[1] in matrices]
        places = {place.name: place for place in held_places(engine)}
        self._places = [places.get(name) for name, _, _ in held]
        self._spans = self._gather_spans(device)
        # every rank tells of the parts that it holds, and so each knows in which tensor a parameter lies
        flat_of = [max(span[i][2] for span in self._spans) for i in range(len(held))]
        found = [
            (flat_of[i], matrix)
            for i, (_, parameter, shard) in enumerate(held)
            for matrix in _matrices(i, part_shape(parameter), shard, matrices[parameter])
        ]
        self._matrices = {flat: [m for number, m in found if number == flat] for flat in set(flat_of)}
        self.flats = {key for key, number in self._numbers.items() if number in self._matrices}

    @torch.no_grad()
    def update(self, flats: Sequence[torch.Tensor], momenta: Sequence[torch.Tensor]) -> None:
        """Put in place of each momentum, laid out like its flat tensor, the update of the matrices in it.

        A collective call of the ranks that hold the same blocks, for tensors of one group of parameters.
        """
        given = {self._numbers[id(flat)]: momentum.view(-1) for flat, momentum in zip(flats, momenta, strict=True)}
        for matrices in self._rounds([self._numbers[id(flat)] for flat in flats]):
            self._round(matrices, given)

    def _rounds(self, flats: Sequence[int]) -> Iterator[list[_Matrix]]:
        """At most one matrix for each rank at a time, the largest first."""
        found = [matrix for flat in flats for matrix in self._matrices[flat]]
        found.sort(key=lambda matrix: (-matrix.count * (matrix.end - matrix.begin), matrix.number, matrix.begin))
        for begin in range(0, len(found), self._ranks):
            some = found[begin : begin + self._ranks]
            yield [replace(matrix, owner=owner) for owner, matrix in enumerate(some)]

    def _round(self, matrices: Sequence[_Matrix], given: Mapping[int, torch.Tensor]) -> None:
        me = self._group.rank()
        mine = matrices[me] if me < len(matrices) else None
        runs = [self._run(matrix, me) for matrix in matrices]
        views = [self._view(matrix, run, given) for matrix, run in zip(matrices, runs, strict=True)]
        none = next(iter(given.values())).new_empty(0)
        sent = [view if self._sends(matrix, me) else none for matrix, view in zip(matrices, views, strict=True)]
        sent += [none] * (self._ranks - len(sent))
        lengths = [0] * self._ranks if mine is None else [self._sent_length(mine, rank) for rank in range(self._ranks)]
        received = self._all_to_all(sent, lengths)

        back = [none] * self._ranks
        if mine is not None:
            back = self._computed(mine, received)
        lengths = [view.numel() for view in views] + [0] * (self._ranks - len(views))
        for view, update in zip(views, self._all_to_all(back, lengths), strict=False):
            view.copy_(update)

    def _computed(self, matrix: _Matrix, received: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The update of a matrix, from what the ranks sent of it to what each of them holds of it."""
        parts = [received[0].new_empty(matrix.end - matrix.begin) for _ in range(matrix.count)]
        for rank, values in enumerate(received):
            if len(values):
                begin, end = self._run(matrix, rank)
                parts[rank % self._tp % matrix.count][begin - matrix.begin : end - matrix.begin] = values
        whole = torch.cat([part.view(matrix.shape) for part in parts], dim=matrix.dim)
        update = matrix_update(whole)
        flat = [part.reshape(-1) for part in update.chunk(matrix.count, dim=matrix.dim)]
        back = []
        for rank in range(self._ranks):
            begin, end = self._run(matrix, rank)
            back.append(flat[rank % self._tp % matrix.count][begin - matrix.begin : end - matrix.begin])
        return back

    def _run(self, matrix: _Matrix, rank: int) -> tuple[int, int]:
        """Which elements of the flattened parameter a rank holds of a matrix; none where the two are equal."""
        start, numel, _ = self._spans[rank][matrix.number]
        begin = min(max(start, matrix.begin), matrix.end)
        return begin, max(begin, min(start + numel, matrix.end))

    def _sends(self, matrix: _Matrix, rank: int) -> bool:
        """Whether a rank's elements are those that are computed with; of copies those nearest to the owner are."""
        same_data = rank // self._tp == matrix.owner // self._tp
        same_tp = rank % self._tp == matrix.owner % self._tp
        return (same_data or not self._copies) and (same_tp or matrix.count > 1)

    def _sent_length(self, matrix: _Matrix, rank: int) -> int:
        begin, end = self._run(matrix, rank)
        return end - begin if self._sends(matrix, rank) else 0

    def _view(self, matrix: _Matrix, run: tuple[int, int], given: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """This rank's elements of a matrix where the optimizer has them."""
        place, (begin, end) = self._places[matrix.number], run
        if place is None or begin == end:
            return next(iter(given.values()))[:0]
        flat = given[self._numbers[id(place.flat)]]
        return flat.narrow(0, place.begin + begin - place.start, end - begin)

    def _all_to_all(self, sent: Sequence[torch.Tensor], lengths: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """What each rank has sent to this one, of the given lengths."""
        given = torch.cat(list(sent)).to(self._dtype)
        out = given.new_empty(sum(lengths))
        dist.all_to_all_single(out, given, list(lengths), [len(values) for values in sent], group=self._group)
        return out.split(list(lengths))

    def _gather_spans(self, device: torch.device) -> list[list[list[int]]]:
        """Of each rank and parameter: first element and number of those it holds, and the number of the flat tensor."""
        rows = [self._span(place) for place in self._places]
        mine = torch.tensor(rows, dtype=torch.int64, device=device)
        all_ranks = mine.new_empty(self._ranks * len(rows), 3)
        dist.all_gather_into_tensor(all_ranks, mine, group=self._group)
        found: list[list[list[int]]] = all_ranks.view(self._ranks, len(rows), 3).tolist()
        return found

    def _span(self, place: Place | None) -> tuple[int, int, int]:
        return (0, 0, -1) if place is None else (place.start, place.numel, self._numbers[id(place.flat)])


def _flat_tensors(engine: Engine) -> list[torch.Tensor]:
    """The tensors that the optimizer updates, in an order that is the same on all ranks with the same blocks."""
    if engine.zero == 3:
        return list(engine.deepspeed.optimizer.fp32_partitioned_groups_flat)
    return [flat for group in engine.base_optimizer.param_groups for flat in group["params"]]


def _matrices(number: int, shape: Sequence[int], shard: Shard, stacked: int) -> Iterator[_Matrix]:
    """The matrices of a parameter, of which a tp rank has a part of `shape`: rows one after another in each part."""
    assert shard.count == 1 or shard.dim > 0 or shard.blocks == stacked, "a shard has its part of each matrix"
    rows, columns = shape[0] // stacked, shape[1]
    for begin in range(0, stacked * rows * columns, rows * columns):
        yield _Matrix(number, (rows, columns), begin, begin + rows * columns, shard.dim, shard.count)
