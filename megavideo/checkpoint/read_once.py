"""A checkpoint that is read for all of its weights, in their order: each of its files once, and hashed meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from megavideo.border.refused import Refused
from megavideo.checkpoint.hashed_file import HashedFile
from megavideo.checkpoint.manifest import DamagedError, FragmentEntry
from megavideo.checkpoint.read import CheckpointReader
from megavideo.parallel.layers.sharding import WHOLE


class SinglePassReader(CheckpointReader):
    """Reads ranges before it knows that the files are whole, which `finish` tells in the end."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._files: dict[str, HashedFile] = {}

    def read_into(self, state: str, name: str, start: int, out: torch.Tensor) -> None:
        """Put elements of a whole flattened parameter, from `start` on, into `out`, float32 on the CPU; as `read`."""
        self._gather(state, name, WHOLE, start, out)
        self._count.add(state, name, out)

    def finish(self) -> None:
        """Compare each file that was read from with its hash. Raises DamagedError that names one that differs."""
        for file, hashed in self._files.items():
            with self._reading(file):
                self._compare(file, hashed.digest())

    def check_finite(self) -> None:
        """As of any reader; what is not finite since its file is damaged is told as that."""
        if self.non_finite:
            self.finish()
        super().check_finite()

    def _put(self, file: str, entry: FragmentEntry, begin: int, out: torch.Tensor) -> None:
        with self._reading(file):
            if file not in self._files:
                self._files[file] = HashedFile(self.folder / file)
            self._files[file].read(entry.key, begin - entry.start, out)

    def _slice(self, file: str, entry: FragmentEntry, begin: int, end: int) -> torch.Tensor:
        part = torch.empty(end - begin)
        self._put(file, entry, begin, part)
        return part

    @contextmanager
    def _reading(self, file: str) -> Iterator[None]:
        try:
            yield
        except (Refused, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DamagedError(f"{self.folder / file}: damaged ({reason}). Remedy: use another checkpoint") from error
