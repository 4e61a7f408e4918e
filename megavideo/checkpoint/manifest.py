"""What a checkpoint says of itself: JSON beside safetensors files of flat fragments. No layout, no pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from megavideo.errors import CheckpointError
from megavideo.parallel.sharding import WHOLE, Shard

MANIFEST = "manifest.json"
FORMAT = 2
_WITHOUT_SHARDS = 1  # an older format, whose fragments are of whole parameters
PREFIX = "step_"
UNFINISHED = ".writing-"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class FragmentEntry:
    """One run of one state of a parameter, and its key in the file.

    It has elements [start, start + numel) of the flattened `shard`.
    """

    key: str
    state: str
    name: str
    shard: Shard
    start: int
    numel: int


@dataclass(frozen=True)
class FileEntry:
    """One safetensors file, its size and xxh64, and the fragments in it."""

    file: str
    size_bytes: int
    xxh64: str
    fragments: tuple[FragmentEntry, ...]


@dataclass(frozen=True)
class Manifest:
    """A whole checkpoint after `step` global steps.

    `optimizer_steps` counts applied updates; `shapes` are the whole parameters'; `layout` is the one that wrote it,
    for information; `config` is the run's resolved YAML.
    """

    format: int
    step: int
    optimizer_steps: int
    layout: str
    shapes: dict[str, tuple[int, ...]]
    config: str
    files: tuple[FileEntry, ...]

    @property
    def states(self) -> set[str]:
        """Names of the states that were saved."""
        return {fragment.state for file in self.files for fragment in file.fragments}

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=1)


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a checkpoint folder. Raises CheckpointError where it is missing or cannot be understood."""
    path = folder / MANIFEST
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: no {MANIFEST}: this is no checkpoint. Remedy: give a run folder, as runs/small, or one "
            f"{PREFIX}... folder in its checkpoints/"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Remedy: use another checkpoint") from error
    try:
        written_as = value["format"]
        if written_as not in (_WITHOUT_SHARDS, FORMAT):
            raise CheckpointError(f"{path}: format {written_as}; this version reads {_WITHOUT_SHARDS} and {FORMAT}")
        shapes = {name: tuple(shape) for name, shape in value["shapes"].items()}
        files = tuple(
            FileEntry(
                f["file"],
                f["size_bytes"],
                f["xxh64"],
                tuple(_fragment(e, shapes, written_as) for e in f["fragments"]),
            )
            for f in value["files"]
        )
        return Manifest(
            written_as, value["step"], value["optimizer_steps"], value["layout"], shapes, value["config"], files
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error!r}). Remedy: use another checkpoint") from error


def file_digest(path: Path) -> str:
    """xxh64 of a file, read piece by piece."""
    digest = xxhash.xxh64()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return checkpoints / f"{PREFIX}{step:08d}"


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(folder for folder in checkpoints.glob(f"{PREFIX}*") if (folder / MANIFEST).is_file())


def _fragment(value: dict[str, Any], shapes: dict[str, tuple[int, ...]], written_as: int) -> FragmentEntry:
    name, shard = value["name"], WHOLE if written_as == _WITHOUT_SHARDS else Shard(**value["shard"])
    if not _divides(shard, shapes[name]):
        raise ValueError(f"{shard} of {name!r}, which is {shapes[name]}")
    return FragmentEntry(value["key"], value["state"], name, shard, value["start"], value["numel"])


def _divides(shard: Shard, shape: tuple[int, ...]) -> bool:
    if shard.count == 1:
        return True
    held = 0 <= shard.dim < len(shape) and shard.blocks >= 1 and 0 <= shard.index < shard.count
    return held and shape[shard.dim] % (shard.blocks * shard.count) == 0
