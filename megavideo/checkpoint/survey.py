"""What lies in a run's checkpoints: each with its state, its size and why it is kept."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from megavideo.checkpoint.folder_place import FolderPlace
from megavideo.checkpoint.manifest import MANIFEST, DamagedError, FileEntry, Manifest, file_digest
from megavideo.checkpoint.place import Place, Storage
from megavideo.checkpoint.retention import Summary, reasons_to_keep
from megavideo.checkpoint.store_place import StorePlace
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.errors import CheckpointError, MegavideoError

GOOD, UNVERIFIED, DAMAGED_STATE = "good", "unverified", "damaged"


@dataclass(frozen=True)
class Row:
    """One checkpoint. `age_seconds` is None where a store does not tell.

    `state` is `good` (every file has its hash), `unverified` (all are there, and in a folder in full size; a store is
    not asked for sizes) or `damaged`, with the `faults`, which name the files. `kept_because` are reasons by the
    settings that the run was last saved with.
    """

    name: str
    step: int | None
    stage: str
    layout: str
    num_files: int
    size_bytes: int
    age_seconds: float | None
    validation_loss: float | None
    kept_because: tuple[str, ...]
    state: str
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Survey:
    """Checkpoints of one place, oldest first."""

    place: str
    checkpoints: tuple[Row, ...]

    @property
    def faults(self) -> tuple[str, ...]:
        """Of all of them."""
        return tuple(fault for row in self.checkpoints for fault in row.faults)


class Shelf:
    """A folder or a store whose checkpoints are looked at; `only` names one of them."""

    def __init__(self, source: Path | Storage, only: str | None = None) -> None:
        self._source = source
        self.place: Place = FolderPlace(source) if isinstance(source, Path) else StorePlace(source)
        self.address = str(source) if isinstance(source, Path) else source.uri
        self._only = only

    @property
    def storage(self) -> Storage:
        """The store that it is in."""
        assert not isinstance(self._source, Path)
        return self._source

    def names(self) -> list[str]:
        """Finished checkpoints, oldest first."""
        return [name for name in self.place.names() if self._only in (None, name)]

    def age_seconds(self, name: str) -> float | None:
        """Since it was finished; None where a store does not tell, or where it was removed meanwhile."""
        if not isinstance(self._source, Path):
            return None
        try:
            return time.time() - (self._source / name / MANIFEST).stat().st_mtime
        except FileNotFoundError:
            return None

    def fault(self, name: str, file: FileEntry, *, hashes: bool) -> str | None:
        """What is wrong with a file, by its size or also by its hash. Of a store a file is downloaded for its hash."""
        if isinstance(self._source, Path):
            return _fault(self._source / name / file.file, file, hashes=hashes)
        address = f"{name}/{file.file}"
        try:
            if not hashes:
                return None if self._source.exists(address) else f"{self.address}/{address}: is missing"
            with tempfile.TemporaryDirectory(prefix="megavideo-verify-") as folder:
                copy = Path(folder) / file.file
                self._source.download(address, copy)
                fault = _fault(copy, file, hashes=True)
                return None if fault is None else fault.replace(str(copy), f"{self.address}/{address}")
        except MegavideoError as error:
            return str(error)


def survey(shelf: Shelf, *, hashes: bool) -> Survey:
    """Every checkpoint of a shelf; with `hashes` each file is read. One that a run removes meanwhile is left out.

    Raises CheckpointError where there is none.
    """
    if not shelf.names():
        raise CheckpointError(f"{shelf.address}: no such checkpoint. Remedy: give a run, or one of its checkpoints")
    manifests: dict[str, Manifest] = {}
    rows: dict[str, Row] = {}
    for name in shelf.names():
        try:
            manifests[name] = shelf.place.manifest(name)
        except DamagedError as error:
            rows[name] = Row(
                name, None, "", "", 0, 0, shelf.age_seconds(name), None, (), DAMAGED_STATE, (str(error),)
            )  # fmt: skip
        except MegavideoError:
            if name in shelf.names():
                raise
    reasons = _reasons(list(manifests.values()))
    for name, manifest in manifests.items():
        faults = tuple(_faults(shelf, name, manifest, hashes=hashes))
        state = DAMAGED_STATE if faults else GOOD if hashes else UNVERIFIED
        rows[name] = Row(
            name, manifest.step, str(manifest.progress.get("stage", "")), manifest.layout, len(manifest.files),
            manifest.size_bytes, shelf.age_seconds(name), manifest.validation_loss,
            reasons.get(Summary.of(manifest).name, ()), state, faults,
        )  # fmt: skip
    there = set(shelf.names())  # whoever removes one takes its name away first, so no fault of these comes from that
    return Survey(shelf.address, tuple(rows[name] for name in sorted(rows) if name in there))


def retention_settings(config: str) -> CheckpointConfig:
    """The section `checkpoint` of a run's YAML; settings of other versions are passed over."""
    section = (yaml.safe_load(config) or {}).get("checkpoint") or {}
    known = {field.name for field in fields(CheckpointConfig)}
    return CheckpointConfig(**{name: value for name, value in section.items() if name in known})


def _reasons(manifests: list[Manifest]) -> dict[str, tuple[str, ...]]:
    if not manifests:
        return {}
    return reasons_to_keep(map(Summary.of, manifests), retention_settings(manifests[-1].config))


def _faults(shelf: Shelf, name: str, manifest: Manifest, *, hashes: bool) -> Iterator[str]:
    for file in manifest.files:
        fault = shelf.fault(name, file, hashes=hashes)
        if fault is not None:
            yield fault


def _fault(path: Path, file: FileEntry, *, hashes: bool) -> str | None:
    try:
        size = path.stat().st_size
        if size != file.size_bytes:
            return f"{path}: damaged: it has {size} bytes, the manifest says {file.size_bytes}"
        if hashes and (found := file_digest(path)) != file.xxh64:
            return f"{path}: damaged: its xxh64 is {found}, the manifest says {file.xxh64}"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    return None
