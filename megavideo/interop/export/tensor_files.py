"""Safetensors files written piece by piece: first what is in them, then their bytes.

A few pieces of parameters are in memory, of which the next are read while one is written. The tensors of one parameter
stay together; within a file those of wider numbers come first, as in files of the safetensors library, which keeps
every tensor aligned. They are read in the order of the model, in which a checkpoint has them, and each is written at
its place.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from megavideo.checkpoint.tensor_file import TensorAt, header_bytes, write_all
from megavideo.config.schema.model import ModelConfig
from megavideo.interop.names import TensorRule

_METADATA = {"format": "pt"}  # without which transformers refuses a file
# diffusers computes the embedding of the timestep, modulation tables and norms in fp32: `_keep_in_fp32_modules`
_KEPT_FP32 = ("embed.time.", "modulation_table", "cross_norm.")
_META = torch.device("meta")
_PIECE = 1 << 19  # elements: 2 MiB in fp32, which stay in the cache from the reading to the writing
_AHEAD = 4  # pieces read meanwhile

Form = tuple[torch.dtype, tuple[int, ...]]  # of a tensor


class Weights(Protocol):
    """Where the parameters come from."""

    def value(self, name: str) -> torch.Tensor:
        """A whole one, float32."""

    def read_into(self, name: str, start: int, out: torch.Tensor) -> None:
        """Put elements of a flattened one, from `start` on, into `out`, float32 [numel]."""


@dataclass(frozen=True)
class Group:
    """One of our parameters as it is written: its tensors by name, with their shapes, in one type."""

    rule: TensorRule
    dtype: torch.dtype
    shapes: dict[str, tuple[int, ...]]

    @property
    def tensors(self) -> dict[str, Form]:
        """What stands in the file, by name."""
        return {name: (self.dtype, shape) for name, shape in self.shapes.items()}

    @property
    def numel(self) -> int:
        """Elements of our parameter."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def in_order(self) -> bool:
        """Whether its elements lie in its tensors, one after another, as in our parameter, each by itself."""
        return self.rule.form != "patch"

    @property
    def num_bytes(self) -> int:
        """Of all its tensors."""
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.tensors.values())

    def written(self, value: torch.Tensor) -> torch.Tensor:
        """What is written of our parameter's value."""
        return value.to(self.dtype)

    def parts(self, value: torch.Tensor, config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of our parameter's value, by name and one by one."""
        yield from self.rule.to_theirs(self.written(value), config).items()


# makes one of a rule, the type that its tensors would have, and their shapes
GroupOf = Callable[[TensorRule, torch.dtype, dict[str, tuple[int, ...]]], Group]


@dataclass(frozen=True)
class TensorFile:
    """A file and what it will hold, in the order in which it is read."""

    name: str
    groups: tuple[Group, ...]

    @property
    def num_bytes(self) -> int:
        """Of its tensors."""
        return sum(group.num_bytes for group in self.groups)

    @property
    def tensors(self) -> list[str]:
        """Names of its tensors."""
        return [name for group in self.groups for name in group.tensors]


def written_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The type in which a parameter of ours is written where `dtype` is asked for."""
    return torch.float32 if any(part in name for part in _KEPT_FP32) else dtype


def plan_files(
    rules: Sequence[TensorRule],
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    max_bytes: float,
    group_of: GroupOf = Group,
) -> tuple[tuple[Group, ...], ...]:
    """The parameters file by file, in the order of `shapes`, up to `max_bytes` a file but at least one parameter."""
    order = {name: number for number, name in enumerate(shapes)}
    files: list[list[Group]] = []
    room = 0.0
    for rule in sorted(rules, key=lambda rule: order[rule.ours]):
        whole = torch.empty(shapes[rule.ours], device=_META)
        theirs = {name: tuple(part.shape) for name, part in rule.to_theirs(whole, config).items()}
        group = group_of(rule, written_dtype(rule.ours, dtype), theirs)
        if not files or group.num_bytes > room:
            files.append([])
            room = max_bytes
        files[-1].append(group)
        room -= group.num_bytes
    return tuple(tuple(file) for file in files)


def named_files(stem: str, files: Sequence[tuple[Group, ...]]) -> tuple[TensorFile, ...]:
    """Files under the names that diffusers looks for: `STEM.safetensors`, or `STEM-00001-of-00003.safetensors`."""
    if len(files) == 1:
        return (TensorFile(f"{stem}.safetensors", files[0]),)
    count = len(files)
    return tuple(
        TensorFile(f"{stem}-{number:05d}-of-{count:05d}.safetensors", file) for number, file in enumerate(files, 1)
    )


def index_of(files: Sequence[TensorFile]) -> dict[str, object]:
    """The content of the index of several files."""
    weight_map = {name: file.name for file in files for name in file.tensors}
    return {"metadata": {"total_size": sum(file.num_bytes for file in files)}, "weight_map": weight_map}


@torch.no_grad()
def write_tensor_file(
    path: Path, groups: Sequence[Group], config: ModelConfig, weights: Weights, on_bytes: Callable[[int], None]
) -> int:
    """Write the parameters, each as `weights` has it, flush the file to disk, and give its size.

    `on_bytes` is told of the bytes of each piece when it is written. Raises OSError where the disk refuses.
    """
    places = _places(groups)
    header = header_bytes(places, _METADATA)
    with path.open("wb", buffering=0) as file:

        def put(tensor: str, start: int, values: torch.Tensor) -> None:
            content = values.flatten().view(torch.uint8).numpy().data
            file.seek(len(header) + places[tensor][2][0] + start * values.itemsize)
            write_all(file.fileno(), content)
            on_bytes(len(content))

        write_all(file.fileno(), header)
        for group, start, given in _ahead(groups, weights):
            if group.in_order:  # its tensors lie one behind another in the file too
                put(next(iter(group.tensors)), start, group.written(given))
            else:
                for name, part in group.parts(given, config):
                    put(name, 0, part.contiguous())
        os.fsync(file.fileno())
        return file.seek(0, os.SEEK_END)


def _ahead(groups: Sequence[Group], weights: Weights) -> Iterator[tuple[Group, int, torch.Tensor]]:
    """The parameters in order, in flat pieces from an element on where they lie as they are written, else whole.

    While one is written the next are read, into the same few buffers: memory that is new costs more than the reading.
    """
    buffers = [torch.empty(_PIECE) for _ in range(_AHEAD + 1)]

    def read(group: Group, start: int, buffer: torch.Tensor) -> torch.Tensor:
        if not group.in_order:
            return weights.value(group.rule.ours)
        piece = buffer[: min(_PIECE, group.numel - start)]
        weights.read_into(group.rule.ours, start, piece)
        return piece

    coming: deque[tuple[Group, int, Future[torch.Tensor]]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for number, (group, start) in enumerate(_pieces(groups)):
            coming.append((group, start, pool.submit(read, group, start, buffers[number % len(buffers)])))
            if len(coming) == len(buffers):
                first, begin, given = coming.popleft()
                yield first, begin, given.result()
        for first, begin, given in coming:
            yield first, begin, given.result()


def _pieces(groups: Sequence[Group]) -> Iterator[tuple[Group, int]]:
    """Each parameter with the elements at which its pieces begin."""
    for group in groups:
        yield from ((group, start) for start in range(0, group.numel, _PIECE if group.in_order else group.numel))


def _places(groups: Sequence[Group]) -> dict[str, TensorAt]:
    """Wider numbers first, whatever the group: the scales of a quantised one stand before all codes."""
    forms = [form for group in groups for form in group.tensors.items()]
    places: dict[str, TensorAt] = {}
    begin = 0
    for name, (dtype, shape) in sorted(forms, key=lambda form: -form[1][0].itemsize):
        end = begin + math.prod(shape) * dtype.itemsize
        places[name] = (dtype, shape, (begin, end))
        begin = end
    return places
