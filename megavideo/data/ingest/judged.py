"""Clips as they are judged, in temporary files: in memory stays only what near-duplicates are found by.

They are written as each input's part is judged, and read again in the same order once it is known which clips repeat
others.
"""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import numpy as np

from megavideo.border.json_text import parse_json
from megavideo.data.ingest.duplicates import find_duplicates
from megavideo.data.ingest.fingerprints import Fingerprints
from megavideo.data.ingest.part import Piece
from megavideo.data.ingest.report import ALIKE, DUPLICATE, DroppedClip
from megavideo.data.ingest.rows import ClipRow, clip_line, parse_row
from megavideo.data.ingest.scoring.alike import Embeddings, find_alike
from megavideo.data.ingest.tally import Spans

_DROPPED = b"-"  # before the line of a clip that is not used


class Judged:
    """The clips that pass and those that do not, in the order of files and frames, while the last step goes on.

    `spans` tells over which values their measures go.
    """

    def __init__(self, folder: Path) -> None:
        self.spans = Spans()
        self._lines = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `__exit__`
        self._fingerprints = Fingerprints(folder)
        self._embeddings = Embeddings(folder)
        self._places = array("Q")  # of each clip that passes, in the file of lines

    def __enter__(self) -> Judged:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lines.close()
        self._fingerprints.close()
        self._embeddings.close()

    def passes(self, row: ClipRow, piece: Piece, embedding: np.ndarray | None = None) -> None:
        """Add a clip that is kept unless it repeats another. All clips have an embedding, or none has."""
        self.spans.add(row)
        if embedding is not None:
            self._embeddings.add(embedding)
        self._places.append(self._lines.tell())
        self._lines.write(clip_line(row))
        seconds = None if row.is_image else row.frames / row.fps
        self._fingerprints.add(piece.hash_bits, piece.colours, row.width * row.height, row.frames, seconds)

    def drops(self, clip: DroppedClip) -> None:
        """Add a clip, or a whole input, that is not used."""
        self.spans.add(clip)
        self._lines.write(_DROPPED + dropped_line(clip))

    def outcomes(self, duplicate_bits: int | None, cosine: float | None = None) -> Iterator[ClipRow | DroppedClip]:
        """Every clip in order: those that pass and repeat no other, and those that are dropped.

        Copies are told by their hashes, then, of what is left, those of like embeddings.
        """
        repeated = np.full(len(self._places), -1, np.int64)
        if duplicate_bits is not None:
            repeated = find_duplicates(self._fingerprints, duplicate_bits)
        alike, cosines = np.full(len(self._places), -1, np.int64), None
        if cosine is not None:
            alike, cosines = find_alike(self._fingerprints, self._embeddings, cosine, repeated)
        self._lines.seek(0)
        passed = 0
        for line in self._lines:
            if line.startswith(_DROPPED):
                yield parse_json(line.removeprefix(_DROPPED), DroppedClip)
                continue
            row = parse_row(line)
            if repeated[passed] >= 0:
                yield dropped_clip(row, DUPLICATE, f"repeats {self._place(int(repeated[passed]))}")
            elif alike[passed] >= 0 and cosines is not None:
                words = f"is like {self._place(int(alike[passed]))} (cosine {cosines[passed]:.4f})"
                yield dropped_clip(row, ALIKE, words)
            else:
                yield row
            passed += 1

    def _place(self, number: int) -> str:
        """File and first frame of a clip that passed."""
        here = self._lines.tell()
        self._lines.seek(self._places[number])
        first = parse_row(self._lines.readline())
        self._lines.seek(here)
        return first.file if first.start == 0 else f"{first.file} from frame {first.start}"


def dropped_clip(row: ClipRow, kind: str, reason: str) -> DroppedClip:
    """A clip that is not used, and why."""
    seconds = 0.0 if row.is_image else round(row.frames / row.fps, 3)
    return DroppedClip(row.file, kind, reason, row.clip_id, row.start, row.frames, seconds, row.scores)


def dropped_line(clip: DroppedClip) -> bytes:
    """A line of `dropped.jsonl`."""
    return json.dumps(asdict(clip), ensure_ascii=False).encode() + b"\n"
