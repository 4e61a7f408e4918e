"""What a checkpoint says of itself: JSON beside safetensors files of flat fragments. No layout, no pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from megavideo.errors import CheckpointError
from megavideo.parallel.layers.sharding import WHOLE, Shard

MANIFEST = "manifest.json"
FORMAT = 3
_WITHOUT_SHARDS = 1  # an older format, whose fragments are of whole parameters
_READABLE = (_WITHOUT_SHARDS, 2, FORMAT)  # the first two do not tell of progress
PREFIX = "step_"
UNFINISHED = ".writing-"
DAMAGED = "damaged-"
_BLOCK_BYTES = 1 << 20
_DIGEST = "digest"


class DamagedError(CheckpointError):
    """A checkpoint with a file that is missing, cut or changed: one before it may still be whole."""


@dataclass(frozen=True)
class Header:
    """What all ranks know of the checkpoint they are about to write.

    `step` counts the global steps done, `layout` and `config` (resolved YAML) are the run's. `progress` is the train
    room's own account, any JSON object, kept as it is. `validation_loss` is what `checkpoint.keep_best` goes by, and
    `stage_end` marks the last one of a stage.
    """

    step: int
    layout: str
    config: str
    progress: dict[str, Any] = field(default_factory=dict)
    validation_loss: float | None = None
    stage_end: bool = False


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
    for information; the rest is as in `Header`.
    """

    format: int
    step: int
    optimizer_steps: int
    layout: str
    shapes: dict[str, tuple[int, ...]]
    config: str
    files: tuple[FileEntry, ...]
    progress: dict[str, Any] = field(default_factory=dict)
    validation_loss: float | None = None
    stage_end: bool = False

    @property
    def states(self) -> set[str]:
        """Names of the states that were saved."""
        return {fragment.state for file in self.files for fragment in file.fragments}

    @property
    def size_bytes(self) -> int:
        """Of all files but the manifest."""
        return sum(file.size_bytes for file in self.files)

    def to_json(self) -> str:
        """The file's text, with a digest of all the rest of it."""
        value = {name: getattr(self, name) for name in self.__dataclass_fields__}
        value["files"] = [file_value(file) for file in self.files]
        return json.dumps({**value, _DIGEST: _digest(value)})


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a checkpoint folder.

    Raises DamagedError where it cannot be understood, CheckpointError where it is missing or of another version.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: no {MANIFEST}: this is no checkpoint. Remedy: give a run folder, as runs/small, or one "
            f"{PREFIX}... folder in its checkpoints/"
        ) from error
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path}: cannot be read ({error}). Remedy: use another checkpoint") from error
    return parse_manifest(text, str(path))


def parse_manifest(text: str, source: str) -> Manifest:
    """A manifest from its text; `source` names it in messages. Raises as `read_manifest` does."""
    try:
        value: dict[str, Any] = json.loads(text)
        written_as = value["format"]
        if written_as not in _READABLE:
            readable = ", ".join(str(number) for number in _READABLE)
            raise CheckpointError(
                f"{source}: format {written_as}; this version reads {readable}. Remedy: use the version that wrote it"
            )
        if written_as >= FORMAT and value.pop(_DIGEST) != _digest(value):
            raise ValueError("its text is not what was written")
        shapes = {name: tuple(shape) for name, shape in value["shapes"].items()}
        files = tuple(_file(file, shapes, written_as) for file in value["files"])
        if any(Path(file.file).name != file.file for file in files):
            raise ValueError("a file outside the folder")
        return Manifest(
            written_as, value["step"], value["optimizer_steps"], value["layout"], shapes, value["config"], files,
            dict(value.get("progress", {})), value.get("validation_loss"), bool(value.get("stage_end", False)),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{source}: damaged ({error!r}). Remedy: use another checkpoint") from error


def file_value(file: FileEntry) -> dict[str, Any]:
    """An entry as plain values for JSON."""
    # by hand, as `asdict` copies each number and there may be millions
    fragments = [{**vars(entry), "shard": vars(entry.shard)} for entry in file.fragments]
    return {**vars(file), "fragments": fragments}


def parse_file(value: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> FileEntry:
    """The entry back from `file_value`. Raises KeyError, TypeError or ValueError where it is none."""
    return _file(value, shapes, FORMAT)


def file_digest(path: Path) -> str:
    """xxh64 of a file, read piece by piece."""
    digest = xxhash.xxh64()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def step_name(step: int) -> str:
    """The name of the checkpoint of a step."""
    return f"{PREFIX}{step:08d}"


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    folders = (path for path in checkpoints.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal())
    return sorted(folder for folder in folders if (folder / MANIFEST).is_file())


def _digest(value: dict[str, Any]) -> str:
    return xxhash.xxh64(json.dumps(value).encode()).hexdigest()


def _file(value: dict[str, Any], shapes: dict[str, tuple[int, ...]], written_as: int) -> FileEntry:
    fragments = tuple(_fragment(entry, shapes, written_as) for entry in value["fragments"])
    return FileEntry(value["file"], value["size_bytes"], value["xxh64"], fragments)


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
