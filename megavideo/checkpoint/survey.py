"""What lies in a run's checkpoints: each with its state, its size and why it is kept."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from megavideo.border.files import check_file
from megavideo.border.refused import Refused
from megavideo.checkpoint.finite import FiniteCount, NonFinite, add_file, say_non_finite
from megavideo.checkpoint.folder_place import FolderPlace
from megavideo.checkpoint.manifest import MANIFEST, DamagedError, FileEntry, Manifest, file_digest, settings_of
from megavideo.checkpoint.place import Place, Storage
from megavideo.checkpoint.retention import Summary, reasons_to_keep
from megavideo.checkpoint.store_place import StorePlace
from megavideo.config.build import build
from megavideo.config.schema.checkpoint import CheckpointConfig
from megavideo.errors import CheckpointError, ConfigError, MegavideoError

GOOD, UNVERIFIED, DAMAGED_STATE, NON_FINITE_STATE = "good", "unverified", "damaged", "not finite"


@dataclass(frozen=True)
class Row:
    """One checkpoint. `age_seconds` is None where a store does not tell.

    `state` is `good` (every file has its hash), `unverified` (all are there, and in a folder in full size; a store is
    not asked for sizes), `damaged`, with the `faults`, which name the files, or `not finite`, with a fault and all
    tensors in `non_finite`. `kept_because` are reasons by the settings that the run was last saved with.
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
    non_finite: tuple[NonFinite, ...] = ()


@dataclass(frozen=True)
class Looked:
    """How closely files are looked at: by their `hashes`, and by their `values`, which are then all read."""

    hashes: bool = False
    values: bool = False


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

    def fault(self, name: str, file: FileEntry, look: Looked, count: FiniteCount) -> str | None:
        """What is wrong with a file, by its size or also by its hash; of a whole one values are added to `count`.

        Of a store a file is downloaded for its hash and values.
        """
        if isinstance(self._source, Path):
            return _fault(self._source / name / file.file, file, look, count)
        address = f"{name}/{file.file}"
        try:
            if not look.hashes and not look.values:
                return None if self._source.exists(address) else f"{self.address}/{address}: is missing"
            with tempfile.TemporaryDirectory(prefix="megavideo-verify-") as folder:
                copy = Path(folder) / file.file
                self._source.download(address, copy)
                fault = _fault(copy, file, look, count)
                return None if fault is None else fault.replace(str(copy), f"{self.address}/{address}")
        except MegavideoError as error:
            return str(error)


def survey(shelf: Shelf, look: Looked) -> Survey:
    """Every checkpoint of a shelf, looked at as closely as asked. One that a run removes meanwhile is left out.

    Raises CheckpointError where there is none.
    """
    if not shelf.names():
        raise CheckpointError(f"{shelf.address}: no such checkpoint. Remedy: give a run, or one of its checkpoints")
    manifests: dict[str, Manifest] = {}
    kept_by = CheckpointConfig()
    rows: dict[str, Row] = {}
    for name in shelf.names():
        try:
            manifest = shelf.place.manifest(name)
            kept_by = retention_settings(manifest.config, f"{shelf.address}/{name}")
            manifests[name] = manifest
        except DamagedError as error:
            rows[name] = Row(
                name, None, "", "", 0, 0, shelf.age_seconds(name), None, (), DAMAGED_STATE, (str(error),)
            )  # fmt: skip
        except MegavideoError:
            if name in shelf.names():
                raise
    reasons = reasons_to_keep(map(Summary.of, manifests.values()), kept_by)
    for name, manifest in manifests.items():
        count = FiniteCount()
        faults = tuple(_faults(shelf, name, manifest, look, count))
        state = DAMAGED_STATE if faults else GOOD if look.hashes else UNVERIFIED
        if count.found:
            faults = (*faults, f"{shelf.address}/{name}: {say_non_finite(count.found)}")
            state = NON_FINITE_STATE if state != DAMAGED_STATE else state
        rows[name] = Row(
            name, manifest.step, str(manifest.progress.get("stage", "")), manifest.layout, len(manifest.files),
            manifest.size_bytes, shelf.age_seconds(name), manifest.validation_loss,
            reasons.get(Summary.of(manifest).name, ()), state, faults, count.found,
        )  # fmt: skip
    there = set(shelf.names())  # whoever removes one takes its name away first, so no fault of these comes from that
    return Survey(shelf.address, tuple(rows[name] for name in sorted(rows) if name in there))


def retention_settings(config: str, source: str) -> CheckpointConfig:
    """The section `checkpoint` of a run's YAML, which stands in `source`; settings of other versions are passed over.

    Raises DamagedError where it is none.
    """
    section = settings_of(config, source).get("checkpoint")
    known = {field.name for field in fields(CheckpointConfig)}
    values = {name: value for name, value in section.items() if name in known} if isinstance(section, dict) else {}
    try:
        return build(CheckpointConfig, values)
    except ConfigError as error:
        raise DamagedError(f"{source}: its settings are damaged ({error}). Remedy: use another checkpoint") from error


def _faults(shelf: Shelf, name: str, manifest: Manifest, look: Looked, count: FiniteCount) -> Iterator[str]:
    for file in manifest.files:
        fault = shelf.fault(name, file, look, count)
        if fault is not None:
            yield fault


def _fault(path: Path, file: FileEntry, look: Looked, count: FiniteCount) -> str | None:
    try:
        size = check_file(path).st_size
        if size != file.size_bytes:
            return f"{path}: damaged: it has {size} bytes, the manifest says {file.size_bytes}"
        if look.hashes and (found := file_digest(path)) != file.xxh64:
            return f"{path}: damaged: its xxh64 is {found}, the manifest says {file.xxh64}"
        if look.values:
            add_file(count, path, file)
    except DamagedError as error:
        return str(error)
    except (OSError, Refused) as error:
        return f"{path}: cannot be read ({getattr(error, 'strerror', error)})"
    return None
