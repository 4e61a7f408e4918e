"""What a checkpoint says of itself: JSON beside safetensors files of flat fragments. No layout, no pickle."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megavideo.border.fields import Count, Finite
from megavideo.border.files import GB, open_file, read_file
from megavideo.border.json_text import parse_json
from megavideo.border.names import plain_name, shown
from megavideo.border.refused import Refused
from megavideo.border.yaml_text import parse_yaml
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
_MOST_BYTES = 4 * GB  # a fragment has some 250 bytes here
_DIGEST = "digest"
_DIGEST_DIGITS = 16
_HASH = re.compile(f"[0-9a-f]{{{_DIGEST_DIGITS}}}")


class DamagedError(CheckpointError):
    """A checkpoint with a file that is missing, cut or changed: one before it may still be whole."""


@dataclass(frozen=True)
class BaseReference:
    """The checkpoint beside whose weights adapters were trained: its folder then, and xxh64 of its manifest."""

    checkpoint: str
    xxh64: str


@dataclass(frozen=True)
class Header:
    """What all ranks know of the checkpoint they are about to write.

    `step` counts the global steps done, `layout` and `config` (resolved YAML) are the run's. `progress` is the train
    room's own account, any JSON object, kept as it is. `validation_loss` is what `checkpoint.keep_best` goes by, and
    `stage_end` marks the last one of a stage. `base` is there where all that is saved are adapters.
    """

    step: int
    layout: str
    config: str
    progress: dict[str, Any] = field(default_factory=dict)
    validation_loss: float | None = None
    stage_end: bool = False
    base: BaseReference | None = None


@dataclass(frozen=True)
class FragmentEntry:
    """One run of one state of a parameter, and its key in the file.

    It has elements [start, start + numel) of the flattened `shard`.
    """

    key: str
    state: str
    name: str
    start: Count
    numel: Count
    shard: Shard


@dataclass(frozen=True)
class FileEntry:
    """One safetensors file, its size and xxh64, and the fragments in it."""

    file: str
    size_bytes: Count
    xxh64: str
    fragments: tuple[FragmentEntry, ...]

    def __post_init__(self) -> None:
        """Raise Refused for a file outside the folder, and for fragments of more elements than it has bytes."""
        plain_name(self.file)
        if not _HASH.fullmatch(self.xxh64):
            raise Refused(f"{self.file}: {shown(self.xxh64)} is no xxh64")
        told = sum(fragment.numel for fragment in self.fragments)
        if told > self.size_bytes:
            raise Refused(f"{self.file} has {self.size_bytes} bytes, and {told} elements are said to be in it")


@dataclass(frozen=True)
class Manifest:
    """A whole checkpoint after `step` global steps.

    `optimizer_steps` counts applied updates; `shapes` are the whole parameters'; `layout` is the one that wrote it,
    for information; the rest is as in `Header`.
    """

    format: int
    step: Count
    optimizer_steps: Count
    layout: str
    shapes: dict[str, tuple[Count, ...]]
    config: str
    files: tuple[FileEntry, ...]
    progress: dict[str, Any] = field(default_factory=dict)
    validation_loss: Finite | None = None
    stage_end: bool = False
    base: BaseReference | None = None

    def __post_init__(self) -> None:
        """Raise Refused where files and shapes do not belong together."""
        check_fragments(self.files, self.shapes)

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
        value["base"] = None if self.base is None else vars(self.base)
        text = json.dumps(value).encode()
        return _with_digest(text, _digest(text)).decode()


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a checkpoint folder.

    Raises DamagedError where it cannot be understood, CheckpointError where it is missing or of another version.
    """
    path = folder / MANIFEST
    try:
        text = read_file(path, _MOST_BYTES)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: no {MANIFEST}: this is no checkpoint. Remedy: give a run folder, as runs/small, or one "
            f"{PREFIX}... folder in its checkpoints/"
        ) from error
    except (OSError, Refused) as error:
        raise DamagedError(f"{path}: cannot be read ({error}). Remedy: use another checkpoint") from error
    return parse_manifest(text, str(path))


def parse_manifest(text: bytes, source: str) -> Manifest:
    """A manifest from its text; `source` names it in messages. Raises as `read_manifest` does."""
    try:
        written_as = parse_json(text, _Format).format
        if written_as not in _READABLE:
            readable = ", ".join(str(number) for number in _READABLE)
            raise CheckpointError(
                f"{source}: format {written_as}; this version reads {readable}. Remedy: use the version that wrote it"
            )
        if written_as >= FORMAT and not _is_as_written(text):
            raise Refused("its text is not what was written")
        return parse_json(_with_shards(text) if written_as == _WITHOUT_SHARDS else text, Manifest)
    except Refused as error:
        raise DamagedError(f"{source}: damaged ({error}). Remedy: use another checkpoint") from error


def settings_of(config: str, source: str) -> dict[str, Any]:
    """The run's settings in a manifest's `config`, as plain values; DamagedError where they are none."""
    try:
        values = parse_yaml(config) or {}
        if not isinstance(values, dict):
            raise Refused(f"{shown(str(values))} is no mapping")
    except Refused as error:
        raise DamagedError(f"{source}: its settings are damaged ({error}). Remedy: use another checkpoint") from error
    return values


def check_fragments(files: Iterable[FileEntry], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise Refused where a fragment is of no parameter in `shapes` or lies outside it, or a parameter is not there."""
    held: Counter[str] = Counter()
    for fragment in (fragment for file in files for fragment in file.fragments):
        shape = shapes.get(fragment.name)
        if shape is None:
            raise Refused(f"a fragment of {shown(fragment.name)}, which has no shape")
        if not _divides(fragment.shard, shape):
            raise Refused(f"{fragment.shard} of {shown(fragment.name)}, which is {shape}")
        numel = math.prod(shape) // fragment.shard.count
        if fragment.start + fragment.numel > numel:
            raise Refused(f"{shown(fragment.name)}: elements up to {fragment.start + fragment.numel} of {numel}")
        held[fragment.name] += fragment.numel
    for name, shape in shapes.items():
        if math.prod(shape) > held[name]:
            raise Refused(f"{shown(name)} is {shape}, and no more than {held[name]} elements of it are in the files")


def file_value(file: FileEntry) -> dict[str, Any]:
    """An entry as plain values for JSON."""
    # by hand, as `asdict` copies each number and there may be millions
    fragments = [{**vars(entry), "shard": vars(entry.shard)} for entry in file.fragments]
    return {**vars(file), "fragments": fragments}


def file_digest(path: Path) -> str:
    """xxh64 of a regular file, read piece by piece; Refused for anything else."""
    import xxhash

    digest = xxhash.xxh64()
    with open_file(path) as file:
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


@dataclass(frozen=True)
class _Format:
    format: int


def _with_shards(text: bytes) -> bytes:
    """A manifest of the format whose fragments are all of whole parameters, as later formats tell it."""
    value = parse_json(text)
    try:
        for fragment in (fragment for file in value["files"] for fragment in file["fragments"]):
            fragment["shard"] = vars(WHOLE)
    except (KeyError, TypeError, AttributeError) as error:
        raise Refused(f"its fragments cannot be read ({error!r})") from error
    return json.dumps(value).encode()


def _digest(text: bytes) -> str:
    import xxhash

    return xxhash.xxh64(text).hexdigest()


def _is_as_written(text: bytes) -> bool:
    """Whether the digest, the last field, is that of the text before it."""
    end = len(_with_digest(b"{}", "0" * _DIGEST_DIGITS)) - 1
    body = text.rstrip()[:-end] + b"}"
    return text.rstrip() == _with_digest(body, _digest(body))


def _with_digest(text: bytes, digest: str) -> bytes:
    return text[:-1] + f', "{_DIGEST}": "{digest}"}}'.encode()


def _divides(shard: Shard, shape: tuple[int, ...]) -> bool:
    if shard.count == 1:
        return True
    held = 0 <= shard.dim < len(shape) and shard.blocks >= 1 and 0 <= shard.index < shard.count
    return held and shape[shard.dim] % (shard.blocks * shard.count) == 0
