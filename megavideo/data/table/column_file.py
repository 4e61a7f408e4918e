"""A column in a `.npy` file whose rows are written in any order and by any process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ColumnFile:
    """Where a column's values lie in its file: `row_bytes` for each row, from byte `begin` on."""

    path: Path
    dtype: np.dtype[Any]
    begin: int
    row_bytes: int

    @classmethod
    def create(cls, folder: Path, name: str, dtype: type[np.generic], *shape: int) -> ColumnFile:
        """A column of zeros in a new file. Raises OSError where there is no room for it, so that none lacks later."""
        path, kind = folder / f"{name}.npy", np.dtype(dtype)
        row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * kind.itemsize
        with path.open("wb") as file:
            write_header(file, kind, shape)
            begin = file.tell()
            os.posix_fallocate(file.fileno(), 0, begin + shape[0] * row_bytes)
        return cls(path, kind, begin, row_bytes)

    def write(self, first: int, values: npt.NDArray[Any]) -> None:
        """Write the rows from `first` on; OSError where the disk refuses."""
        with self.path.open("r+b", buffering=0) as file:
            file.seek(self.begin + first * self.row_bytes)
            file.write(np.ascontiguousarray(values, self.dtype).data)

    def mapped(self, mode: str = "r") -> npt.NDArray[Any]:
        """The column, mapped."""
        column: npt.NDArray[Any] = np.lib.format.open_memmap(self.path, mode)
        return column


def write_header(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """The head of a `.npy` file; room is left in it for the number of rows to grow."""
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)
