"""The tensors of several safetensors files under their plain names: shapes and types at once, values piece by piece."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megavideo.border.refused import Refused
from megavideo.border.tensor_file import open_tensors, reading_tensors
from megavideo.errors import CheckpointError
from megavideo.interop.source import Source, named

# what torch.compile, FSDP, activation checkpointing and DDP put around a module, wherever they wrap
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|module)\.")
_PREFIXES = ("model", "diffusion_model")  # either, or the second in the first
_FLOATS = ("F64", "F32", "F16", "BF16")
_QUANTISED = re.compile(r"(?:^|\.)(?:scaled_fp8|scale_weight|weight_scale|input_scale|qweight|qzeros|SCB|absmax)$")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in `file` under `key`; `dtype` as safetensors writes it, `BF16` for example."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


class TensorFiles:
    """Tensors by their plain names, without the prefixes and wrappers that programs put before them.

    Raises CheckpointError naming the file that cannot be read, and the tensors that two names stand for, that an index
    has elsewhere, that are quantised, or that are empty.
    """

    def __init__(self, source: Source) -> None:
        self.place = source.place
        self.tensors: dict[str, StoredTensor] = {}
        self._handles: dict[Path, Any] = {}
        for path in source.files:
            self._add(path)
        _check_index(source, {stored.key: stored.file for stored in self.tensors.values()})
        self._check_values()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors."""
        return {name: stored.shape for name, stored in self.tensors.items()}

    def read(self, name: str, rows: slice = slice(None), columns: slice | None = None) -> torch.Tensor:
        """Rows of a tensor, and of those `columns` where they are given, in the type of the file."""
        stored = self.tensors[name]
        try:
            with reading_tensors():
                part = self._handles[stored.file].get_slice(stored.key)
                values: torch.Tensor = part[rows] if columns is None else part[rows, columns]
        except Refused as error:
            raise _unreadable(stored.file, error) from error
        return values

    def _add(self, path: Path) -> None:
        try:
            handle = open_tensors(path)
            with reading_tensors():
                found = {key: handle.get_slice(key) for key in handle.keys()}  # noqa: SIM118
                stored = {
                    key: StoredTensor(path, key, tuple(part.get_shape()), str(part.get_dtype()))
                    for key, part in found.items()
                }
        except (OSError, Refused) as error:
            raise _unreadable(path, error) from error
        self._handles[path] = handle
        for key, tensor in stored.items():
            other = self.tensors.setdefault(plain_name_of(key), tensor)
            if other is not tensor:
                raise CheckpointError(
                    f"{path}: tensor {key!r} is there twice, as {other.key!r} of {other.file.name} too. Remedy: give "
                    "one file, or leave one set of weights in the folder"
                )

    def _check_values(self) -> None:
        stored = self.tensors.values()
        quantised = [t.key for t in stored if t.dtype not in _FLOATS or _QUANTISED.search(t.key)]
        if quantised:
            kinds = ", ".join(sorted({tensor.dtype for tensor in stored} - set(_FLOATS))) or "scales beside its tensors"
            raise CheckpointError(
                f"{self.place}: quantised weights ({kinds}), which cannot be trained on: {named(quantised)}. Remedy: "
                "take the bf16, fp16 or fp32 file of the same model"
            )
        empty = [tensor.key for tensor in stored if 0 in tensor.shape]
        if empty:
            raise CheckpointError(
                f"{self.place}: tensors of size 0, as ZeRO-3 leaves them where parameters are saved without being "
                f"gathered: {named(empty)}. Remedy: save the model again with its parameters gathered"
            )


def plain_name_of(key: str) -> str:
    """A tensor's name without prefixes and wrappers."""
    name = _WRAPPERS.sub("", key)
    for prefix in _PREFIXES:
        name = name.removeprefix(f"{prefix}.")
    return name


def _check_index(source: Source, held: dict[str, Path]) -> None:
    wrong = [key for key, file in source.placed.items() if key not in held or held[key].name != file]
    if wrong:
        raise CheckpointError(
            f"{source.place}: not in the files in which the index has them: {named(wrong)}. Remedy: copy the folder "
            "again"
        )


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: cannot be read ({error}): cut short, damaged, or of another format. Remedy: copy the file again"
    )
