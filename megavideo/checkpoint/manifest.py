"""What a checkpoint says of itself: JSON beside safetensors files of flat fragments. No layout, no pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megavideo.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT = 1
PREFIX = "step_"
UNFINISHED = ".writing-"


@dataclass(frozen=True)
class FragmentEntry:
    """One run of elements [start, start + numel) of one state of one flattened parameter, and its key in the file."""

    key: str
    state: str
    name: str
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
        if value["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {value['format']}; this version reads {FORMAT}")
        files = tuple(
            FileEntry(f["file"], f["size_bytes"], f["xxh64"], tuple(FragmentEntry(**e) for e in f["fragments"]))
            for f in value["files"]
        )
        shapes = {name: tuple(shape) for name, shape in value["shapes"].items()}
        return Manifest(
            FORMAT, value["step"], value["optimizer_steps"], value["layout"], shapes, value["config"], files
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error!r}). Remedy: use another checkpoint") from error


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return checkpoints / f"{PREFIX}{step:08d}"


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(folder for folder in checkpoints.glob(f"{PREFIX}*") if (folder / MANIFEST).is_file())
