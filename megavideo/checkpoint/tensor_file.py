"""Safetensors files written from one buffer, hashed on the way: no copy of the tensors and no second read of the file.

A file is the header's length (8 bytes, little endian), the header (JSON: for each key its dtype, shape and bytes), and
the tensors without gaps: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import xxhash

from megavideo.checkpoint.manifest import FileEntry
from megavideo.checkpoint.snapshot import SavedTensor

CHUNK_BYTES = 2 << 20  # in the cache between hash and write; writes of 16 MB took three times as long on ext4
_ALIGNMENT = 8
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.int8: "I8",
}  # fmt: skip

# dtype, shape, and the first byte and the one after the last, counted from the first tensor's begin
TensorAt = tuple[torch.dtype, tuple[int, ...], tuple[int, int]]


def write_tensors(
    path: Path, tensors: Sequence[SavedTensor], buffer: torch.Tensor, on_progress: Callable[[], None] = lambda: None
) -> FileEntry:
    """Write tensors that lie together in `buffer` (uint8) to `path`, and flush it to disk.

    `on_progress` is called after each piece, and once it is flushed.
    Raises OSError where the disk refuses; what was written of the file is then gone.
    """
    try:
        with path.open("wb", buffering=0) as file:

            def take(chunk: bytes | memoryview) -> None:
                write_all(file.fileno(), chunk)
                on_progress()

            entry = _through(tensors, buffer, path.name, take)
            os.fsync(file.fileno())
            on_progress()
    except OSError:
        path.unlink(missing_ok=True)  # room for the note that tells of it
        raise
    return entry


def tensor_bytes(name: str, tensors: Sequence[SavedTensor], buffer: torch.Tensor) -> tuple[FileEntry, bytes]:
    """The entry and content of the file called `name`, for a store that takes it as a whole."""
    content = bytearray()
    return _through(tensors, buffer, name, content.extend), bytes(content)


def _through(
    tensors: Sequence[SavedTensor], buffer: torch.Tensor, name: str, take: Callable[[bytes | memoryview], object]
) -> FileEntry:
    digest, size = xxhash.xxh64(), 0
    for chunk in _chunks(tensors, buffer):
        digest.update(chunk)
        take(chunk)
        size += len(chunk)
    return FileEntry(name, size, digest.hexdigest(), tuple(tensor.entry for tensor in tensors))


def _chunks(tensors: Sequence[SavedTensor], buffer: torch.Tensor) -> Iterator[bytes | memoryview]:
    first, last = tensors[0].begin, tensors[-1].end
    yield _header(tensors)
    data = buffer.numpy().data[first:last]
    for begin in range(0, len(data), CHUNK_BYTES):
        yield data[begin : begin + CHUNK_BYTES]


def _header(tensors: Sequence[SavedTensor]) -> bytes:
    first = tensors[0].begin
    return header_bytes(
        {t.entry.key: (t.dtype, (t.entry.numel,), (t.begin - first, t.end - first)) for t in tensors}, {}
    )


def header_bytes(tensors: Mapping[str, TensorAt], metadata: Mapping[str, str]) -> bytes:
    """The begin of a file of `tensors`, up to the first of their bytes; `metadata` is kept by the format as it is."""
    rows: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    rows |= {
        key: {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": list(offsets)}
        for key, (dtype, shape, offsets) in tensors.items()
    }
    text = json.dumps(rows, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_all(descriptor: int, chunk: bytes | memoryview) -> None:
    """Write all bytes, however few of them the system takes at a time; OSError where it refuses."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(descriptor, rest[:CHUNK_BYTES]) :]
