"""Reading a checkpoint under any layout: each caller takes the element ranges it needs, of any shard."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from megavideo.border.names import shown
from megavideo.border.refused import Refused
from megavideo.border.tensor_file import open_tensors, reading_tensors
from megavideo.checkpoint.manifest import (
    BaseReference,
    DamagedError,
    FragmentEntry,
    Manifest,
    file_digest,
    list_checkpoints,
    read_manifest,
)
from megavideo.checkpoint.weight_reader import WeightReader
from megavideo.errors import CheckpointError
from megavideo.optim.adamw import EMA
from megavideo.parallel.engines.fragments import Fragment
from megavideo.parallel.layers.sharding import WHOLE, Shard

# elements mapped at once between two shardings, and the most that move as one unit
_CHUNK, _MAX_UNIT = 1 << 20, 4096


class CheckpointReader(WeightReader):
    """Ranges of states of a checkpoint. Each file is verified when it is first read from.

    Fragments may be saved of any other sharding than the one that is asked for. Raises DamagedError naming the file
    that is missing or damaged.
    """

    other_place = "use an earlier checkpoint; `megavideo checkpoint verify RUN` tells which are finite"

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self._digests = {file.file: file.xxh64 for file in self.manifest.files}
        self._handles: dict[str, Any] = {}
        self._verified: set[str] = set()
        rows: dict[tuple[str, str], dict[Shard, list[_Row]]] = defaultdict(lambda: defaultdict(list))
        for file in self.manifest.files:
            for entry in file.fragments:
                rows[entry.state, entry.name][_plain(entry.shard)].append((file.file, entry))
        self._saved = {
            key: {shard: _Pieces(pieces) for shard, pieces in shards.items()} for key, shards in rows.items()
        }

    def verify(self) -> None:
        """Read every file and compare it with its hash; only those that are read from are verified otherwise."""
        for file in self._digests:
            self._verify(file)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Whole shapes of the parameters."""
        return self.manifest.shapes

    @property
    def states(self) -> set[str]:
        """Names of the states that were saved."""
        return self.manifest.states

    @property
    def base(self) -> BaseReference | None:
        """As the manifest tells."""
        return self.manifest.base

    def _read(self, state: str, name: str, shard: Shard, start: int, numel: int) -> torch.Tensor:
        try:
            out = torch.empty(numel)
        except RuntimeError as error:  # more than the machine has: what the manifest tells is no model of ours
            raise DamagedError(f"{self.folder}: {shown(name)} of {numel} elements does not fit into memory") from error
        self._gather(state, name, shard, start, out)
        return out

    def _gather(self, state: str, name: str, shard: Shard, start: int, out: torch.Tensor) -> None:
        """Fill `out` as `_read` gives it, from all fragments that hold a part of it."""
        numel = out.numel()
        saved, shard = self._saved.get((state, name), {}), _plain(shard)
        covered = self._copy(saved[shard], start, out) if shard in saved else 0
        if covered < numel and saved.keys() - {shard}:
            covered = self._map(saved, _Target(self.manifest.shapes[name], shard, start), out)
        if covered != numel:
            raise CheckpointError(
                f"{self.folder}: state {state!r} of parameter {name!r} is not there in whole ({covered} of {numel} "
                f"elements; states saved: {', '.join(sorted(self.manifest.states))}). Remedy: use another checkpoint, "
                "or weights=raw where the average was not kept"
            )

    def value(self, state: str, name: str, shape: Sequence[int]) -> torch.Tensor:
        """One state of one parameter in its full `shape`, float32.

        Raises CheckpointError where the parameter is not in the checkpoint, or of another shape there.
        """
        self._check(name, tuple(shape))
        return self.read(state, name, WHOLE, 0, math.prod(shape)).view(tuple(shape))

    def whole(self, state: str) -> dict[str, torch.Tensor]:
        """One state of every parameter in its full shape; `ema` or `weight`."""
        return {name: self.value(state, name, shape) for name, shape in self.manifest.shapes.items()}

    def fill(self, fragment: Fragment) -> None:
        """Put the saved values into a rank's live states.

        Raises CheckpointError where the parameter is another, or was trained by another optimizer.
        """
        self._check(fragment.name, fragment.shape)
        self._check_optimizer(fragment)
        for state, values in fragment.states.items():
            values.copy_(self.read(state, fragment.name, fragment.shard, fragment.start, fragment.numel))
        fragment.steps.fill_(self.manifest.optimizer_steps)

    def _check_optimizer(self, fragment: Fragment) -> None:
        lacks = [state for state in fragment.states if state != EMA and (state, fragment.name) not in self._saved]
        if lacks:
            saved = sorted(state for state, name in self._saved if name == fragment.name)
            raise CheckpointError(
                f"{self.folder}: made with another optimizer: parameter {fragment.name!r} has {', '.join(saved)} in "
                f"the checkpoint and no {' or '.join(lacks)}, which optim= of this run needs. Remedy: take the optim= "
                "that made it, or begin another run with its weights"
            )

    def _copy(self, pieces: _Pieces, start: int, out: torch.Tensor) -> int:
        """Fill from fragments of the very shard that is asked for; number of elements found."""
        covered, at, stop = 0, start, start + out.numel()
        for file, entry in pieces.over(start, stop):
            begin, end = max(at, entry.start), min(stop, entry.start + entry.numel)
            if begin < end:  # else a copy of what another rank saved
                self._put(file, entry, begin, out[begin - start : end - start])
                covered, at = covered + end - begin, end
        return covered

    def _map(self, saved: dict[Shard, _Pieces], target: _Target, out: torch.Tensor) -> int:
        """Fill from fragments of any shards; number of elements found.

        Elements move in units that no shard cuts, which makes indices few; only where a fragment ends within a unit
        does each element move by itself.
        """
        unit = _unit(target.shape, [target.shard, *saved])
        step = _CHUNK // unit * unit
        covered, start, stop = 0, target.start, target.start + out.numel()
        for begin in range(start // unit * unit, stop, step):
            end = min(begin + step, -(-stop // unit) * unit)
            shard, grid = _in_units(target.shard, target.shape, unit)
            positions = shard.whole_positions(grid, begin // unit, (end - begin) // unit)
            values, found = self._take(saved, target.shape, positions, unit)
            cut = (~found[:, 0]).nonzero().squeeze(1)
            if unit > 1 and len(cut):
                elements = (positions[cut, None] * unit + torch.arange(unit)).flatten()
                single, single_found = self._take(saved, target.shape, elements, 1)
                values[cut], found[cut] = single.view(-1, unit), single_found.view(-1, unit)
            low, high = max(start, begin), min(stop, end)
            out[low - start : high - start] = values.flatten()[low - begin : high - begin]
            covered += int(found.flatten()[low - begin : high - begin].sum())
        return covered

    def _take(
        self, saved: dict[Shard, _Pieces], shape: tuple[int, ...], positions: torch.Tensor, unit: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Units at ascending `positions` of the whole parameter, and which were found: both [positions, unit]."""
        values, found = torch.empty(len(positions), unit), torch.zeros(len(positions), unit, dtype=torch.bool)
        for other, pieces in saved.items():
            shard, grid = _in_units(other, shape, unit)
            local = shard.local_positions(grid, positions)
            held = (local >= 0).nonzero().squeeze(1)
            local = local[held]  # ascending, as a shard keeps the order of the whole
            if not len(held):
                continue
            for file, entry in pieces.over(int(local[0]) * unit, (int(local[-1]) + 1) * unit):
                inside = torch.tensor([-(-entry.start // unit), (entry.start + entry.numel) // unit])
                first, last = torch.searchsorted(local, inside).tolist()
                if first >= last:
                    continue
                begin, end = int(local[first]), int(local[last - 1]) + 1
                part = self._slice(file, entry, begin * unit, end * unit).view(-1, unit)
                values[held[first:last]] = part[local[first:last] - begin].float()
                found[held[first:last]] = True
        return values, found

    def _put(self, file: str, entry: FragmentEntry, begin: int, out: torch.Tensor) -> None:
        """Fill `out` from one fragment, from element `begin` of the shard on."""
        out.copy_(self._slice(file, entry, begin, begin + out.numel()))

    def _slice(self, file: str, entry: FragmentEntry, begin: int, end: int) -> torch.Tensor:
        """Elements [begin, end) of the shard, from one fragment: a view of the mapped file."""
        try:
            with reading_tensors():
                part: torch.Tensor = self._opened(file).get_slice(entry.key)[begin - entry.start : end - entry.start]
                if part.shape != (end - begin,) or not part.is_floating_point():
                    raise Refused(f"{shown(entry.key)} is {tuple(part.shape)} of {part.dtype}")
        except Refused as error:
            raise DamagedError(f"{self.folder / file}: damaged ({error}). Remedy: use another checkpoint") from error
        return part

    def _verify(self, file: str) -> None:
        path = self.folder / file
        try:
            actual = file_digest(path)
        except (OSError, Refused) as error:
            reason = f"cannot be read ({getattr(error, 'strerror', error)}). Remedy: use another checkpoint"
            raise DamagedError(f"{path}: {reason}") from error
        self._compare(file, actual)

    def _compare(self, file: str, actual: str) -> None:
        """Raise DamagedError where the hash of a file is not that of the manifest."""
        expected = self._digests[file]
        if actual != expected:
            raise DamagedError(
                f"{self.folder / file}: damaged: its xxh64 is {actual}, the manifest says {expected}. Remedy: use "
                "another checkpoint; a run goes on from the one before it by itself"
            )

    def _opened(self, file: str) -> Any:
        if file not in self._handles:
            if file not in self._verified:
                self._verify(file)
                self._verified.add(file)
            try:
                self._handles[file] = open_tensors(self.folder / file)
            except (Refused, OSError) as error:
                raise DamagedError(f"{self.folder / file}: cannot be read ({error})") from error
        return self._handles[file]


_Row = tuple[str, FragmentEntry]


class _Pieces:
    """Saved fragments of one state of one shard, with their files, found by range without going through all."""

    def __init__(self, rows: list[_Row]) -> None:
        self._rows = sorted(rows, key=lambda row: (row[1].start, -row[1].numel))
        self._starts = [entry.start for _, entry in self._rows]
        self._reached = list(accumulate((entry.start + entry.numel for _, entry in self._rows), max))

    def over(self, begin: int, end: int) -> Iterator[_Row]:
        """Fragments that hold anything of [begin, end), in order."""
        yield from self._rows[bisect_right(self._reached, begin) : bisect_left(self._starts, end)]


@dataclass(frozen=True)
class _Target:
    """Where the elements that are asked for begin: at `start` of the flattened `shard` of a parameter of `shape`."""

    shape: tuple[int, ...]
    shard: Shard
    start: int


def _plain(shard: Shard) -> Shard:
    """The one name of the whole, which may be said in several ways."""
    return WHOLE if shard.count == 1 else shard


def _unit(shape: tuple[int, ...], shards: Iterable[Shard]) -> int:
    """Number of elements that lie together in the whole and in all of `shards`, wherever a multiple of it begins."""
    common = math.gcd(math.prod(shape), *(_run(shard, shape) for shard in shards))
    return next(unit for unit in range(min(common, _MAX_UNIT), 0, -1) if common % unit == 0)


def _run(shard: Shard, shape: tuple[int, ...]) -> int:
    """Number of elements of the flattened whole that lie together in a shard."""
    if shard.count == 1:
        return math.prod(shape)
    return math.prod(shape[shard.dim :]) // (shard.blocks * shard.count)


def _in_units(shard: Shard, shape: tuple[int, ...], unit: int) -> tuple[Shard, tuple[int, int]]:
    """The same cut of the parameter seen as units instead of elements: a shard of a matrix, and its shape."""
    if shard.count == 1:
        return shard, (1, math.prod(shape) // unit)
    row = math.prod(shape[shard.dim :]) // unit
    return Shard(1, shard.blocks, shard.index, shard.count), (math.prod(shape[: shard.dim]), row)


def find_checkpoint(place: Path) -> Path:
    """A checkpoint folder from a run folder (its newest), its `checkpoints` folder, or itself."""
    if not place.exists():
        raise CheckpointError(f"{place}: no such folder. Remedy: give a run folder or a checkpoint in it")
    for folder in (place / "checkpoints", place):
        found = list_checkpoints(folder)
        if found:
            return found[-1]
    read_manifest(place)
    return place
