"""A rank's states copied to host memory, so that training goes on while they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from megavideo.checkpoint.manifest import FragmentEntry
from megavideo.device.choice import copies_for
from megavideo.device.copies import DeviceCopies, Final, Pair
from megavideo.parallel.engines.fragments import Fragment

# what makes the copies of a device
ChooseCopies = Callable[[torch.device], DeviceCopies]
# states that are final, by the device on which they are
FinalStates = Mapping[torch.device, Final]

_HOST = torch.device("cpu")


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

    def __init__(self, max_file_bytes: int | None = None, choose: ChooseCopies = copies_for) -> None:
        self._max_file_bytes = max_file_bytes
        self._choose = choose
        self._copies: dict[torch.device, DeviceCopies] = {}
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def reserve(self, fragments: Iterable[Fragment]) -> None:
        """Make the buffer before the first save, whose blocked time would else be that of making it."""
        tensors = [values for fragment in fragments for values in fragment.states.values()]
        self._grow(tensors)
        self._buffer.zero_()  # memory is given by the system when it is first written to

    def final(self, fragments: Iterable[Fragment]) -> FinalStates:
        """Say that the states are final once what this thread has given to the device is done, for `take`."""
        groups: dict[torch.device, list[torch.Tensor]] = {}
        for fragment in fragments:
            for values in (*fragment.states.values(), fragment.steps):
                groups.setdefault(values.device, []).append(values)
        return {device: self._of(device).final(group) for device, group in groups.items()}

    def take(self, fragments: Sequence[Fragment], final: FinalStates | None = None) -> RankState:
        """The fragments' states as they were at `final` (None: as they are now), after which nothing has changed them.

        Returns when they are copied, without waiting for what the device does besides. The one before is overwritten.
        """
        final = self.final(fragments) if final is None else final
        rows, counts, shapes = [], {}, {}
        for fragment in fragments:
            counts[fragment.steps.data_ptr()] = fragment.steps
            shapes[fragment.name] = fragment.shape
            rows += [(_entry(fragment, state), values) for state, values in fragment.states.items()]
        # in this order each tensor begins at a multiple of its element's size without gaps between them
        rows.sort(key=lambda row: -row[1].element_size())
        self._grow([values for _, values in rows])
        tensors, pairs, begin = [], [], 0
        for entry, values in rows:
            tensors.append(SavedTensor(entry, values.dtype, begin, begin + values.nbytes))
            place = self._buffer[begin : begin + values.nbytes].view(values.dtype)
            pairs.append((place, values.reshape(-1)))
            begin += values.nbytes
        # counts of updates are copied too: reading one from a device would wait for all that it has been given
        counted = list(counts.values())
        dtype = counted[0].dtype if counted else torch.float32
        steps = self._pinning(counted).buffer((len(counted),), dtype)
        self._copy([*pairs, *zip(steps, counted, strict=True)], final)
        most = int(steps.max()) if counted else 0
        return RankState(tuple(self._in_files(tensors)), self._buffer, most, shapes)

    def _copy(self, pairs: Sequence[Pair], final: FinalStates) -> None:
        """All devices at once, and wait for all."""
        groups: dict[torch.device, list[Pair]] = {}
        for pair in pairs:
            groups.setdefault(pair[1].device, []).append(pair)
        # those of the host are made in this thread, so that the others have to begin before
        devices = sorted(groups, key=lambda device: not self._of(device).pinned)
        for copies in [final[device].to_host(groups[device]) for device in devices]:
            copies.wait()

    def _grow(self, tensors: Sequence[torch.Tensor]) -> None:
        size_bytes = sum(values.nbytes for values in tensors)
        if size_bytes > self._buffer.numel():
            self._buffer = torch.empty(0, dtype=torch.uint8)  # the old one goes before the new one comes
            self._buffer = self._pinning(tensors).buffer((size_bytes,), torch.uint8)

    def _pinning(self, tensors: Iterable[torch.Tensor]) -> DeviceCopies:
        """The copies whose buffers suit all of the tensors."""
        devices = {values.device for values in tensors} or {_HOST}
        return max((self._of(device) for device in devices), key=lambda copies: copies.pinned)

    def _of(self, device: torch.device) -> DeviceCopies:
        if device not in self._copies:
            self._copies[device] = self._choose(device)
        return self._copies[device]

    def _in_files(self, tensors: list[SavedTensor]) -> list[tuple[SavedTensor, ...]]:
        files: list[list[SavedTensor]] = []
        for tensor in tensors:
            limit = self._max_file_bytes
            if not files or (limit is not None and tensor.end - files[-1][0].begin > limit):
                files.append([])
            files[-1].append(tensor)
        return [tuple(file) for file in files]


def _entry(fragment: Fragment, state: str) -> FragmentEntry:
    shard, start, numel = fragment.shard, fragment.start, fragment.numel
    key = f"{state}/{fragment.name}/{shard.index}of{shard.count}@{start}+{numel}"
    return FragmentEntry(key, state, fragment.name, start, numel, shard)
