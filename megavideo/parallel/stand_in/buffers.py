"""The memory of tensors under way in a collective: filled with what spoils whatever uses it, and watched for changes.

Nothing here reads a tensor through torch, so that what counts reads of a device's values does not see it.
"""

from __future__ import annotations

import ctypes
import zlib

import torch


class Watched:
    """A tensor whose bytes must stay as they were when this was made."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self._sum = checksum(tensor)

    @property
    def changed(self) -> bool:
        """Whether they did not."""
        return checksum(self.tensor) != self._sum


def checksum(tensor: torch.Tensor) -> int:
    """CRC-32 of a contiguous tensor's bytes."""
    if tensor.nbytes == 0:
        return 0
    return zlib.crc32((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))


def spoil(tensor: torch.Tensor) -> None:
    """Fill with NaN, or with the largest integer."""
    # under its own version counter, as torch's collectives write too: autograd does not see it
    plain = tensor.data
    if plain.dtype.is_floating_point or plain.dtype.is_complex:
        plain.fill_(float("nan"))
    elif plain.dtype == torch.bool:
        plain.fill_(True)
    else:
        plain.fill_(torch.iinfo(plain.dtype).max)


def share_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two contiguous tensors have bytes in common."""
    begin, start = one.data_ptr(), other.data_ptr()
    return begin < start + other.nbytes and start < begin + one.nbytes
