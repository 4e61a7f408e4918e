"""Safetensors files written one parameter at a time: first what is in them, then their bytes.

No more than two parameters are in memory. The tensors of one stay in one file, so that it is read once; within a file
those of wider numbers come first, as in files of the safetensors library, which keeps every tensor aligned.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from megavideo.checkpoint.tensor_file import TensorAt, header_bytes, write_all
from megavideo.config.schema.model import ModelConfig
from megavideo.interop.names import TensorRule

_METADATA = {"format": "pt"}  # without which transformers refuses a file
# diffusers computes the embedding of the timestep, modulation tables and norms in fp32: `_keep_in_fp32_modules`
_KEPT_FP32 = ("embed.time.", "modulation_table", "cross_norm.")
_META = torch.device("meta")

Value = Callable[[str], torch.Tensor]
Form = tuple[torch.dtype, tuple[int, ...]]  # of a tensor


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
    """A file and what it will hold, in the order of its bytes."""

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
    """The parameters file by file, in the order of `rules`, up to `max_bytes` a file but at least one parameter."""
    files: list[list[Group]] = []
    room = 0.0
    for rule in rules:
        whole = torch.empty(shapes[rule.ours], device=_META)
        theirs = {name: tuple(part.shape) for name, part in rule.to_theirs(whole, config).items()}
        group = group_of(rule, written_dtype(rule.ours, dtype), theirs)
        if not files or group.num_bytes > room:
            files.append([])
            room = max_bytes
        files[-1].append(group)
        room -= group.num_bytes
    return tuple(tuple(sorted(file, key=lambda group: -group.dtype.itemsize)) for file in files)


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
    path: Path, groups: Sequence[Group], config: ModelConfig, value: Value, on_bytes: Callable[[int], None]
) -> int:
    """Write the parameters, each as `value` gives it, flush the file to disk, and give its size.

    `on_bytes` is told of the bytes of each tensor when it is written. Raises OSError where the disk refuses.
    """
    places = _places(groups)
    header = header_bytes(places, _METADATA)
    with path.open("wb", buffering=0) as file:
        write_all(file.fileno(), header)
        for group, given in zip(groups, _ahead(groups, value), strict=True):
            for name, part in group.parts(given, config):
                content = part.contiguous().flatten().view(torch.uint8).numpy().data
                file.seek(len(header) + places[name][2][0])
                write_all(file.fileno(), content)
                on_bytes(len(content))
        os.fsync(file.fileno())
        return file.seek(0, os.SEEK_END)


def _ahead(groups: Sequence[Group], value: Value) -> Iterator[torch.Tensor]:
    """The parameters in order; while one is written, the next is read."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(value, groups[0].rule.ours)
        for group in groups[1:]:
            given = coming.result()
            coming = pool.submit(value, group.rule.ours)
            yield given
            del given
        yield coming.result()


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
