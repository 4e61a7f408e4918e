"""Copies for a device that is the host: done at once, in the calling thread."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from megavideo.device.copies import Pair

_THREADS = 4  # one copies some 10 GB/s


class CpuCopies:
    """Copies in host memory; see `DeviceCopies`."""

    pinned: bool = False

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Plain memory."""
        return torch.empty(tuple(shape), dtype=dtype)

    def staged(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The tensor itself, if it has that dtype."""
        return tensor.to(dtype)

    def final(self, sources: Sequence[torch.Tensor]) -> _Final:
        """Nothing to note: what was called is done."""
        del sources
        return _Final()

    def to_device(self, tensors: Sequence[torch.Tensor]) -> _OnDevice:
        """The tensors themselves."""
        return _OnDevice(tuple(tensors))


class _Final:
    def to_host(self, pairs: Sequence[Pair]) -> _OnHost:
        if len(pairs) == 1:
            _copy(pairs[0])
        else:
            # torch would cut each copy into a part for each of its threads, and on a busy machine wait for the last one
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(_copy, pairs))
        return _OnHost(tuple(place for place, _ in pairs))


def _copy(pair: Pair) -> None:
    place, source = pair
    np.copyto(_bytes(place.view(-1)), _bytes(source.detach().reshape(-1)))


def _bytes(flat: torch.Tensor) -> np.ndarray:
    return flat.view(torch.uint8).numpy()


class _OnHost:
    def __init__(self, places: tuple[torch.Tensor, ...]) -> None:
        self._places = places

    def ready(self) -> bool:
        return True

    def wait(self) -> None:
        return

    def back(self) -> _OnDevice:
        return _OnDevice(self._places)


class _OnDevice:
    def __init__(self, tensors: tuple[torch.Tensor, ...]) -> None:
        self._tensors = tensors

    def ready(self) -> bool:
        return True

    def get(self) -> tuple[torch.Tensor, ...]:
        return self._tensors
