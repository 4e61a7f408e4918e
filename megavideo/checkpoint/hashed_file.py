"""A checkpoint's file read and hashed in one pass, piece by piece into memory that the caller owns."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import torch
import xxhash

from megavideo.border.files import open_descriptor
from megavideo.border.names import shown
from megavideo.border.refused import Refused
from megavideo.border.tensor_file import tensor_places

_PIECE_BYTES = 2 << 20  # stays in the cache between read and hash
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class HashedFile:
    """Tensors of a safetensors file. What lies before a range that is asked for is hashed on the way to it.

    So a file that is asked in the order in which its tensors lie is read once. Nothing that was read is known to be
    whole until `digest` has gone to the end. Raises Refused where it is no such file, OSError as the system does.
    """

    def __init__(self, path: Path) -> None:
        self._places = tensor_places(path)
        self._descriptor = open_descriptor(path)
        weakref.finalize(self, os.close, self._descriptor)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self._digest, self._hashed = xxhash.xxh64(), 0
        self._buffer = torch.empty(_PIECE_BYTES, dtype=torch.uint8)

    def read(self, key: str, first: int, out: torch.Tensor) -> None:
        """Put elements of a tensor, from `first` of it as it lies in the file on, into the flat and contiguous `out`.

        Raises Refused where the tensor has no such elements.
        """
        place = self._places.get(key)
        dtype = None if place is None else _DTYPES.get(place.dtype)
        if place is None or dtype is None:
            raise Refused(f"{shown(key)} is {'missing' if place is None else place.dtype}")
        begin = place.begin + first * dtype.itemsize
        if first < 0 or begin + out.numel() * dtype.itemsize > place.end:
            raise Refused(f"{shown(key)} is {place.shape}, and elements up to {first + out.numel()} are needed")
        self._hash_up_to(begin)
        step = _PIECE_BYTES // dtype.itemsize
        for at in range(0, out.numel(), step):
            part = out[at : at + step]
            room = part if dtype is out.dtype else self._buffer[: part.numel() * dtype.itemsize].view(dtype)
            self._read(begin + at * dtype.itemsize, room.view(torch.uint8).numpy().data)
            if room is not part:
                part.copy_(room)

    def digest(self) -> str:
        """xxh64 of the whole file, whose rest is read for it."""
        self._hash_up_to(os.fstat(self._descriptor).st_size)
        return self._digest.hexdigest()

    def _hash_up_to(self, end: int) -> None:
        while self._hashed < end:
            self._read(self._hashed, self._buffer[: min(_PIECE_BYTES, end - self._hashed)].numpy().data)

    def _read(self, begin: int, room: memoryview) -> None:
        """Fill `room` from byte `begin` on, which is not behind what was hashed, and hash what of it was not."""
        filled = 0
        while filled < len(room):
            count = os.preadv(self._descriptor, [room[filled:]], begin + filled)
            if not count:
                raise Refused(f"it ends at byte {begin + filled}")
            filled += count
        if begin + filled > self._hashed:
            self._digest.update(room[self._hashed - begin :])
            self._hashed = begin + filled
