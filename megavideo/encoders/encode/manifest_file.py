"""The manifest of a version while it is made: a local file, as it does not fit into memory where clips are many."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from megavideo.border.json_text import parse_json
from megavideo.border.refused import Refused
from megavideo.data.dataset.dataset import DatasetInfo, manifest_line, version_name
from megavideo.data.storage.files import writing
from megavideo.data.storage.protocol import Storage
from megavideo.errors import DataError


@dataclass(frozen=True)
class _Row:
    sample_id: str


class ManifestFile:
    """Lines of a manifest in `path`; 8 bytes a sample are in memory, by which one that comes twice is found."""

    def __init__(self, storage: Storage, folder: Path) -> None:
        self.path = folder / "manifest.jsonl"
        self.num_rows = self.num_bytes = 0
        self._storage = storage
        self._digest = hashlib.sha256()
        self._ids = array("Q")
        self._sorted: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        with writing(self.path):
            self.path.write_bytes(b"")

    @property
    def checksum(self) -> str:
        """SHA-256 of the lines."""
        return self._digest.hexdigest()

    def begin_with(self, info: DatasetInfo) -> None:
        """Take the manifest of an earlier version; DataError where it is damaged."""
        self._storage.download(info.manifest_name, self.path)
        with self.path.open("rb") as file:
            for line in file:
                self._count(line, self._sample_id(line))
        if self.checksum != info.checksums.get(info.manifest_name):
            raise DataError(
                f"{self._storage.uri}/{info.manifest_name}: damaged (its checksum is not the one in "
                f"{version_name(info.version)}). Remedy: restore it from a copy, or encode again with overwrite=true"
            )

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows, which get their indices."""
        with writing(self.path), self.path.open("ab") as file:
            for row in rows:
                line = manifest_line({**row, "index": self.num_rows}).encode()
                file.write(line)
                self._count(line, str(row["sample_id"]))

    def finish(self) -> None:
        """Look for samples that are there twice; DataError where there are any."""
        self._sorted = np.sort(np.frombuffer(self._ids, np.uint64))
        alike = set(self._sorted[1:][self._sorted[1:] == self._sorted[:-1]].tolist())
        if not alike:
            return
        seen: set[str] = set()
        with self.path.open("rb") as file:  # two ids may have one hash
            for line in file:
                sample_id = self._sample_id(line)
                if _hash(sample_id) in alike and sample_id in seen:
                    raise self._twice(sample_id)
                seen.update([sample_id] if _hash(sample_id) in alike else ())

    def _sample_id(self, line: bytes) -> str:
        try:
            return parse_json(line, _Row).sample_id
        except Refused as error:
            raise DataError(
                f"{self._storage.uri}: its manifest is damaged ({error}). Remedy: restore it from a copy, or encode "
                "again with overwrite=true"
            ) from error

    def holds(self, sample_id: str) -> bool:
        """True for the id of a sample, once all are there."""
        place = int(np.searchsorted(self._sorted, np.uint64(_hash(sample_id))))
        return place < len(self._sorted) and int(self._sorted[place]) == _hash(sample_id)

    def _count(self, line: bytes, sample_id: str) -> None:
        self._digest.update(line)
        self._ids.append(_hash(sample_id))
        self.num_rows += 1
        self.num_bytes += len(line)

    def _twice(self, sample_id: str) -> DataError:
        return DataError(
            f"{self._storage.uri}: sample {sample_id} was planned twice, by tasks that were given different lists of "
            "clips at the same time. Remedy: encode again with overwrite=true, with one list for all tasks"
        )


def _hash(sample_id: str) -> int:
    return xxhash.xxh3_64_intdigest(sample_id)
