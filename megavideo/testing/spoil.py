"""Checkpoints that are whole by their hashes, and hold what no run can use."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from megavideo.border.tensor_file import read_tensors
from megavideo.checkpoint.manifest import MANIFEST, FileEntry, file_digest, read_manifest


def spoil_values(checkpoint: Path, state: str, name: str, value: float = math.nan) -> None:
    """Put `value` first into a saved state of the parameter `name`, with hashes as if it had been saved like that."""
    manifest = read_manifest(checkpoint)
    files = tuple(_spoilt(checkpoint, file, state, name, value) for file in manifest.files)
    assert files != manifest.files, f"no file holds the {state} of {name}"
    (checkpoint / MANIFEST).write_text(replace(manifest, files=files).to_json())


def _spoilt(checkpoint: Path, file: FileEntry, state: str, name: str, value: float) -> FileEntry:
    found = [entry for entry in file.fragments if (entry.state, entry.name, entry.start) == (state, name, 0)]
    if not found:
        return file
    path = checkpoint / file.file
    tensors = read_tensors(path)
    for entry in found:
        tensors[entry.key][0] = value
    save_file(tensors, path)
    return replace(file, size_bytes=path.stat().st_size, xxh64=file_digest(path))
