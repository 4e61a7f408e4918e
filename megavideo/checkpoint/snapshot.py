"""A rank's states copied to host memory, so that training goes on while they are written."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from megavideo.checkpoint.manifest import FragmentEntry
from megavideo.parallel.engines.fragments import Fragment

_COPYING_THREADS = 4  # one copies some 10 GB/s


@dataclass(frozen=True)
class SavedTensor:
    """One state of one fragment, in bytes [begin, end) of the buffer."""

    entry: FragmentEntry
    dtype: torch.dtype
    begin: int
    end: int


@dataclass(frozen=True)
class RankState:
    """What a rank saves: `files` of tensors that lie together in `buffer` (uint8, on the host), in their order.

    `steps` counts applied updates, and `shapes` are the whole shapes of the parameters that this rank has a part of.
    """

    files: tuple[tuple[SavedTensor, ...], ...]
    buffer: torch.Tensor
    steps: int
    shapes: dict[str, tuple[int, ...]]

    @property
    def size_bytes(self) -> int:
        """Of all tensors."""
        return sum(file[-1].end - file[0].begin for file in self.files)


class Snapshot:
    """Copies states into one host buffer that the next save uses again; pinned where the states are on a GPU.

    A file takes tensors until it has `max_file_bytes` (None: all of a rank's are in one file). The pinned allocator
    rounds up to a power of two.
    """

    def __init__(self, max_file_bytes: int | None = None) -> None:
        self._max_file_bytes = max_file_bytes
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def reserve(self, fragments: Iterable[Fragment]) -> None:
        """Make the buffer before the first save, whose blocked time would else be that of making it."""
        tensors = [values for fragment in fragments for values in fragment.states.values()]
        self._grow(sum(values.nbytes for values in tensors), any(values.is_cuda for values in tensors))
        self._buffer.zero_()  # memory is given by the system when it is first written to

    def take(self, fragments: Iterable[Fragment]) -> RankState:
        """The fragments' states as they are now. The one before is overwritten."""
        rows, counts, shapes = [], {}, {}
        for fragment in fragments:
            counts[fragment.steps.data_ptr()] = fragment.steps.detach()
            shapes[fragment.name] = fragment.shape
            rows += [(_entry(fragment, state), values.detach()) for state, values in fragment.states.items()]
        # in this order each tensor begins at a multiple of its element's size without gaps between them
        rows.sort(key=lambda row: -row[1].element_size())
        self._grow(sum(values.nbytes for _, values in rows), any(values.is_cuda for _, values in rows))
        tensors, begin = [], 0
        for entry, values in rows:
            tensors.append(SavedTensor(entry, values.dtype, begin, begin + values.nbytes))
            begin += values.nbytes
        _copy([(self._buffer[tensor.begin : tensor.end], values) for tensor, (_, values) in zip(tensors, rows)])
        steps = int(torch.stack(list(counts.values())).max()) if counts else 0
        return RankState(tuple(self._in_files(tensors)), self._buffer, steps, shapes)

    def _grow(self, size_bytes: int, pinned: bool) -> None:
        if size_bytes > self._buffer.numel():
            self._buffer = torch.empty(0, dtype=torch.uint8)  # the old one goes before the new one comes
            self._buffer = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=pinned)

    def _in_files(self, tensors: list[SavedTensor]) -> list[tuple[SavedTensor, ...]]:
        files: list[list[SavedTensor]] = []
        for tensor in tensors:
            limit = self._max_file_bytes
            if not files or (limit is not None and tensor.end - files[-1][0].begin > limit):
                files.append([])
            files[-1].append(tensor)
        return [tuple(file) for file in files]


def _copy(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copy the second of each pair into the first, which is bytes on the host, and wait for all."""
    devices = set()
    for place, values in pairs:
        if values.is_cuda:
            place.view(values.dtype).copy_(values.reshape(-1), non_blocking=True)
            devices.add(values.device)
    # torch would cut each copy into a part for each of its threads, and on a busy machine wait for the last of them
    with ThreadPoolExecutor(_COPYING_THREADS) as pool:
        list(pool.map(_copy_on_host, [pair for pair in pairs if not pair[1].is_cuda]))
    for device in devices:
        torch.cuda.current_stream(device).synchronize()


def _copy_on_host(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    place, values = pair
    np.copyto(place.numpy(), values.reshape(-1).view(torch.uint8).numpy())


def _entry(fragment: Fragment, state: str) -> FragmentEntry:
    shard, start, numel = fragment.shard, fragment.start, fragment.numel
    key = f"{state}/{fragment.name}/{shard.index}of{shard.count}@{start}+{numel}"
    return FragmentEntry(key, state, fragment.name, shard, start, numel)
