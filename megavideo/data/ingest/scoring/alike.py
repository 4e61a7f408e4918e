"""Near-duplicates by embedding: every clip against every kept one, a block of them at a time."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megavideo.data.ingest.fingerprints import Fingerprints

_ROWS, _OTHERS = 2048, 8192  # at a time: 64 MB of cosines

Vectors = npt.NDArray[np.float32]


class Embeddings:
    """Vectors of clips, float16, in a file of `folder`: 2 bytes a number, and none of them in memory."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        self._count = 0
        self._size = 0

    def __len__(self) -> int:
        return self._count

    def add(self, vector: np.ndarray) -> None:
        """Add the vector [D] of the next clip; all have one size."""
        self._size = self._size or len(vector)
        if len(vector) != self._size:
            raise ValueError(f"an embedding of {len(vector)} numbers among others of {self._size}")
        self._file.write(vector.astype("<f2").tobytes())
        self._count += 1

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def vectors(self) -> npt.NDArray[np.float16]:
        """All of them [N, D], mapped from the file."""
        self._file.flush()
        return np.memmap(self._file, "<f2", "r", shape=(self._count, self._size))


def find_alike(
    clips: Fingerprints, embeddings: Embeddings, least_cosine: float, repeated: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], Vectors]:
    """For each clip the kept one that it is alike, -1 for those that are kept or repeat another one already, int64 [N];
    and the cosine of the two, float32 [N].

    The best clips are kept first, as in `find_duplicates`, and each further one is dropped if its embedding and a kept
    one's have a cosine of `least_cosine` or more: the nearest one counts. Clips are compared with clips, images with
    images.
    """
    alike, cosines = np.full(len(clips), -1, np.int64), np.zeros(len(clips), np.float32)
    if not len(clips):
        return alike, cosines
    vectors = embeddings.vectors()
    order = np.lexsort((-clips.frames, -clips.pixels))
    for kind in (False, True):
        ranked = order[(clips.is_image[order] == kind) & (repeated[order] < 0)]
        _search(vectors, ranked, least_cosine, alike, cosines)
    return alike, cosines


def _search(
    vectors: npt.NDArray[np.float16],
    ranked: npt.NDArray[np.int64],
    least_cosine: float,
    alike: npt.NDArray[np.int64],
    cosines: Vectors,
) -> None:
    kept = np.empty(0, np.int64)
    for begin in range(0, len(ranked), _ROWS):
        block = ranked[begin : begin + _ROWS]
        here = _unit(vectors[block])
        best, nearest = np.full(len(block), -2.0, np.float32), np.full(len(block), -1, np.int64)
        for first in range(0, len(kept), _OTHERS):
            others = kept[first : first + _OTHERS]
            found = here @ _unit(vectors[others]).T
            places = found.argmax(axis=1)
            values = found[np.arange(len(block)), places]
            closer = values > best
            best[closer], nearest[closer] = values[closer], others[places[closer]]
        added = _within(block, here, least_cosine, best, nearest)
        dropped = best >= least_cosine
        alike[block[dropped]], cosines[block[dropped]] = nearest[dropped], best[dropped]
        kept = np.concatenate([kept, added])


def _within(
    block: npt.NDArray[np.int64],
    here: Vectors,
    least_cosine: float,
    best: Vectors,
    nearest: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """The clips of a block that are kept, after `best` and `nearest` were compared with those of the block before."""
    found = here @ here.T
    kept: list[int] = []
    for place in range(len(block)):
        if kept:
            closest = kept[int(found[place, kept].argmax())]
            if found[place, closest] > best[place]:
                best[place], nearest[place] = found[place, closest], block[closest]
        if best[place] < least_cosine:
            kept.append(place)
    return block[kept]


def _unit(vectors: npt.NDArray[np.float16]) -> Vectors:
    """Vectors [N, D] of length one again, after they were rounded."""
    exact = vectors.astype(np.float32)
    scaled: Vectors = exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)
    return scaled
