"""The manifest of a dataset, read in parts: one JSON line a sample, checked against what its dataset says of it."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megavideo.data.storage.open import opened
from megavideo.data.storage.protocol import Storage
from megavideo.errors import DataError
from megavideo.types import Grid, SampleInfo

_PART_ROWS = 8192


@dataclass(frozen=True)
class ManifestPart:
    """Consecutive rows, m of them, from sample `first`.

    latent [m, 3] is the size (t, h, w) before patchifying, text [m] the caption's tokens, fps [m] frames a second,
    pixels [m, 3] frames, height and width of the clip.
    """

    first: int
    sample_ids: list[str]
    sources: list[str]
    captions: list[str]
    latent: npt.NDArray[np.int64]
    text: npt.NDArray[np.int64]
    fps: npt.NDArray[np.float64]
    pixels: npt.NDArray[np.int64]

    @property
    def end(self) -> int:
        """The sample after the last one."""
        return self.first + len(self.sample_ids)

    def samples(self) -> Iterator[SampleInfo]:
        """The rows one by one."""
        columns = (
            self.sample_ids, range(self.first, self.end), self.latent.tolist(), self.text.tolist(), self.fps.tolist(),
            self.captions, self.sources,
        )  # fmt: skip
        for sample_id, index, latent, text, fps, caption, source in zip(*columns, strict=True):
            yield SampleInfo(sample_id, index, Grid(*latent), text, fps, caption, source)


@dataclass(frozen=True)
class Manifest:
    """A manifest and what its dataset says of it: SHA-256, number of samples, the patch that divides every latent.

    Ratios are pixels of a latent cell, for rows that do not tell their pixels.
    """

    uri: str
    name: str
    storage: Storage
    checksum: str
    num_samples: int
    patch: tuple[int, int, int]
    time_ratio: int
    space_ratio: int

    def parts(
        self, on_progress: Callable[[], None] = lambda: None, folder: Path | None = None
    ) -> Iterator[ManifestPart]:
        """All rows in order, some thousands at a time; of a store from a copy in `folder`, or where such files go.

        Raises DataError where the file cannot be read, is damaged, or has other rows than sample 0 to the last in
        order. Its checksum is known only at the end: what is made of the parts is not to be used before.
        """
        digest, first = hashlib.sha256(), 0
        with opened(self.storage, self.name, folder, on_progress) as file:
            while lines := list(itertools.islice(file, _PART_ROWS)):
                digest.update(b"".join(lines))
                part = self._part(first, lines)
                first = part.end
                yield part
                on_progress()
        if digest.hexdigest() != self.checksum:
            raise damaged(self.uri, self.name, "its checksum is not the one that the dataset tells")
        if first != self.num_samples:
            raise self._disordered()

    def _part(self, first: int, lines: list[bytes]) -> ManifestPart:
        try:
            rows = json.loads(b"[" + b",".join(lines) + b"]")  # in one call: a third faster than line by line
            latent = np.array([row["latent"] for row in rows], np.int64).reshape(len(rows), 3)
            index = np.array([row["index"] for row in rows], np.int64)
            part = ManifestPart(
                first=first,
                sample_ids=[row["sample_id"] for row in rows],
                sources=[row["source"] for row in rows],
                captions=[row["caption"] for row in rows],
                latent=latent,
                text=np.array([row["text_tokens"] for row in rows], np.int64),
                fps=np.array([row["fps"] for row in rows], np.float64),
                pixels=self._pixels(rows, latent),
            )
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise damaged(self.uri, self.name, error) from error
        if len(rows) != len(lines) or part.end > self.num_samples or (index != np.arange(first, part.end)).any():
            raise self._disordered()
        uneven = np.flatnonzero((latent % self.patch).any(axis=1))
        if len(uneven):
            name = part.sample_ids[int(uneven[0])]
            raise damaged(self.uri, self.name, f"sample {name} does not divide by patch {self.patch}")
        return part

    def _pixels(self, rows: list[dict[str, Any]], latent: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        cell = (self.time_ratio, self.space_ratio, self.space_ratio)
        pixels = (latent - (1, 0, 0)) * cell + (1, 0, 0)
        told = [number for number, row in enumerate(rows) if "pixels" in row]
        if told:
            pixels[told] = np.array([rows[number]["pixels"] for number in told], np.int64).reshape(len(told), 3)
        return pixels

    def _disordered(self) -> DataError:
        return damaged(self.uri, self.name, f"its indices are not 0 to {self.num_samples - 1} in order")


def damaged(uri: str, name: str, reason: object) -> DataError:
    """The error for a small file of a dataset that cannot be used."""
    return DataError(
        f"{uri}/{name}: damaged ({reason}). Remedy: restore it from a copy, or encode again with overwrite=true"
    )
